//! What clients lose while an app is replaced again and again: of our releases, by the gateways and by names within the cluster, and of
//! Docker Swarm's on the same kind of machines.
//!
//! Every answer is checked; nothing is asked twice. The app listens a second after its start, without a health check.
//!
//! `./x bench release [DEPLOYMENTS] [WORD]`: 100 deployments of each case unless said otherwise (20 of those that wait long or have faults),
//! of the cases whose name has that word, or of the groups `together` and `faults`. Those that do not disturb each other go on at once,
//! each an app of its own on the same three machines: all of it takes an hour and a half. Needs root and what the test cluster needs. A
//! kernel without IPVS has no virtual addresses of Swarm's and no ingress mesh, so Swarm's service is asked by DNS round robin, and ours
//! in the same way beside it.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{thread, time::Duration};

use anyhow::{Result, anyhow, ensure};
use wharf_tests::{
    Fleet,
    deployments::{self, Case, Change, Fault, Outcome, Swarm},
    load::{self, Kind},
    skip,
};

/// How long a client waits between an answer and the next request, where many cases go on at once.
const PAUSE: Duration = Duration::from_millis(100);
const AT_ONCE: &str = "parallelism: 3";

/// Cases that go on at once, each with an app of its own.
fn together(deployments: u32) -> Vec<Case> {
    let short = |name| Case { pause: PAUSE, ..Case::new(name, deployments) };
    let few = |name| Case { deployments: deployments.div_ceil(5).max(2), ..short(name) };
    let cases = [
        short("3 tasks, 3 gateways"),
        Case { replicas: 1, ..short("1 task, 3 gateways") },
        short("3 tasks, 1 gateway").asking(&[1]),
        Case { replicas: 1, ..short("1 task, 1 gateway").asking(&[1]) },
        Case {
            clients: vec![(Kind::WebSocket, 12), (Kind::KeepAlive, 2)],
            wharf: "      drain: 2s\n",
            update: AT_ONCE,
            ..short("WebSockets, drained for 2 s")
        },
        Case {
            clients: vec![(Kind::Download, 6), (Kind::KeepAlive, 2)],
            update: AT_ONCE,
            ..short("downloads of 20 s")
        },
        Case {
            environment: vec![("START_DELAY_MS", "1000"), ("IGNORE_TERM", "1")],
            update: AT_ONCE,
            ..short("the app ignores SIGTERM")
        },
        Case { change: Change::Service, ..short("another service each time") },
        Case { change: Change::Scale, ..few("scaled between 1 and 3") },
        Case {
            change: Change::Fails(&[("EXIT_AFTER_MS", "100"), ("EXIT_CODE", "3")]),
            ..few("every second one fails at start")
        },
        Case {
            change: Change::Fails(&[("HEALTHY_AFTER_MS", "100000000")]),
            wharf: "      probe: {http: {port: 8080, path: /health}, interval: 1s, retries: 3, start_period: 2s}\n",
            ..few("every second one fails its probe")
        },
        Case {
            change: Change::Fails(&[("FAIL_AFTER_MS", "5000")]),
            wharf: "      release: {strategy: canary, steps: [{weight: 50, hold: 10s}], judge: {requests: 100, latency_percent: 1000}}\n",
            ..few("canaries, every second answers 500 after 5 s")
        },
    ];
    let named = cases.into_iter().enumerate();
    named.map(|(number, case)| Case { app: format!("app{number}"), ..case }).collect()
}

/// Cases that are alone on the machines.
fn faults(deployments: u32) -> Vec<Case> {
    let deployments = deployments.div_ceil(5).max(4);
    let fault = |name, fault| Case { fault: Some(fault), pause: PAUSE, ..Case::new(name, deployments) };
    vec![
        fault("a gateway is killed (others are asked)", Fault::GatewayKilled).asking(&[1, 3]),
        fault("a gateway is upgraded", Fault::GatewayUpgraded),
        fault("an agent is killed", Fault::AgentKilled),
        fault("the server is killed", Fault::ServerKilled),
    ]
}

fn main() -> Result<()> {
    if skip() {
        return Ok(());
    }
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let deployments = words.iter().find_map(|word| word.parse().ok()).unwrap_or(100);
    let word = words.iter().find(|word| word.parse::<u32>().is_err()).cloned().unwrap_or_default();
    let by_name = [(Kind::KeepAlive, 6), (Kind::Fresh, 4)];
    let chosen = |group: &str, cases: Vec<Case>| -> Vec<Case> {
        cases.into_iter().filter(|case| group == word || case.name.contains(&word)).collect()
    };
    println!("{}", Outcome::head());
    let print = |name: &str, outcome: Outcome| {
        println!("{}", outcome.line(name));
        for line in outcome.losses() {
            println!("{line}");
        }
        outcome
    };
    let (together, faults) =
        (chosen("together", together(deployments)), chosen("faults", faults(deployments)));
    let is_named = "by name".contains(&word);
    let (mut ours, mut peer, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    // One that cannot be carried out is said, and the others are tried.
    let mut note = |name: &str, all: &mut Vec<Outcome>, outcome: Result<Outcome>| match outcome {
        Ok(outcome) => all.push(outcome),
        Err(error) => {
            println!("{name}: not carried out: {error:#}");
            failed.push(name.to_owned());
        }
    };
    if is_named || !together.is_empty() || !faults.is_empty() {
        let fleet = Fleet::start(3);
        let run = |case: &Case| deployments::ours(&fleet, case).map(|outcome| print(case.name, outcome));
        let outcomes: Vec<_> = thread::scope(|scope| {
            let begun: Vec<_> = together.iter().map(|case| scope.spawn(|| run(case))).collect();
            let ended = begun.into_iter().map(thread::ScopedJoinHandle::join);
            ended.map(|case| case.unwrap_or_else(|_| Err(anyhow!("it panicked")))).collect()
        });
        for (case, outcome) in together.iter().zip(outcomes) {
            note(case.name, &mut ours, outcome);
        }
        for case in &faults {
            note(case.name, &mut ours, run(case));
        }
        if is_named {
            let name = "by name, 3 tasks: ours";
            let outcome = deployments::ours_by_name(&fleet, 3, &by_name, deployments);
            note(name, &mut ours, outcome.map(|outcome| print(name, outcome)));
        }
    }
    if is_named {
        let swarm = Swarm::start(3)?;
        for (name, start_first) in
            [("by name, 3 tasks: Swarm, plain", false), ("by name, 3 tasks: Swarm, start-first", true)]
        {
            let outcome = swarm.by_name(3, &by_name, deployments, start_first);
            note(name, &mut peer, outcome.map(|outcome| print(name, outcome)));
        }
    }
    let sum = |outcomes: &[Outcome]| {
        outcomes
            .iter()
            .map(|outcome| load::total(&outcome.report))
            .fold((0, 0), |(asked, lost), figures| (asked + figures.asked, lost + figures.lost))
    };
    let (asked, lost) = sum(&ours);
    println!("goal release-requests-asked {asked} 100000 {}", if asked >= 100_000 { "met" } else { "short" });
    println!("goal release-requests-lost {lost} 0 {}", if lost == 0 { "met" } else { "short" });
    let (asked, lost) = sum(&peer);
    println!("Swarm, in the same run: {lost} of {asked} lost");
    ensure!(failed.is_empty(), "not carried out: {}", failed.join(", "));
    Ok(())
}
