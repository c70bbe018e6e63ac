//! What clients lose while an app is replaced again and again: of our releases, by the gateways and by names within the cluster, and of
//! Docker Swarm's on the same kind of machines.
//!
//! Every answer is checked; nothing is asked twice. The app listens a second after its start, without a health check.
//!
//! `./x bench release [DEPLOYMENTS] [WORD]`: 100 deployments in each case unless said otherwise, of the cases whose name has that word. Needs
//! root and what the test cluster needs. A kernel without IPVS has no virtual addresses of Swarm's and no ingress mesh, so Swarm's service
//! is asked by DNS round robin, and ours in the same way beside it.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use anyhow::Result;
use wharf_tests::{
    Fleet,
    deployments::{self, Case, Fault, Outcome, Swarm},
    load::{self, Kind},
    skip,
};

fn cases(deployments: u32) -> Vec<Case> {
    let short = |name| Case::new(name, deployments);
    let few = deployments.div_ceil(10).max(2);
    let faults = deployments.div_ceil(5).max(4);
    vec![
        short("3 tasks, 3 gateways"),
        Case { replicas: 1, ..short("1 task, 3 gateways") },
        Case { gateways: vec![1], ..short("3 tasks, 1 gateway") },
        Case { replicas: 1, gateways: vec![1], ..short("1 task, 1 gateway") },
        Case {
            clients: vec![(Kind::WebSocket, 12), (Kind::KeepAlive, 2)],
            wharf: "      drain: 2s\n",
            ..Case::new("WebSockets, drained for 2 s", deployments.div_ceil(4).max(2))
        },
        Case {
            clients: vec![(Kind::Download, 12), (Kind::KeepAlive, 2)],
            ..Case::new("downloads of 20 s", few)
        },
        Case {
            environment: vec![("START_DELAY_MS", "1000"), ("IGNORE_TERM", "1")],
            ..Case::new("the app ignores SIGTERM", few)
        },
        Case {
            fault: Some(Fault::GatewayKilled),
            ..Case::new("a gateway is killed (others are asked)", faults).asking(&[1, 3])
        },
        Case { fault: Some(Fault::GatewayUpgraded), ..Case::new("a gateway is upgraded", faults) },
        Case { fault: Some(Fault::AgentKilled), ..Case::new("an agent is killed", faults) },
        Case { fault: Some(Fault::ServerKilled), ..Case::new("the server is killed", faults) },
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
    let mut ours = Vec::new();
    println!("{}", Outcome::head());
    let print = |name: &str, outcome: &Outcome| {
        println!("{}", outcome.line(name));
        for line in outcome.losses() {
            println!("{line}");
        }
    };
    {
        let fleet = Fleet::start(3);
        for case in cases(deployments).into_iter().filter(|case| case.name.contains(&word)) {
            let outcome = deployments::ours(&fleet, &case)?;
            print(case.name, &outcome);
            ours.push(outcome);
        }
        if "by name".contains(&word) {
            let outcome = deployments::ours_by_name(&fleet, 3, &by_name, deployments)?;
            print("by name, 3 tasks: ours", &outcome);
            ours.push(outcome);
        }
    }
    let mut peer = Vec::new();
    if "by name: swarm".contains(&word) {
        let swarm = Swarm::start(3)?;
        for (name, start_first) in
            [("by name, 3 tasks: Swarm, plain", false), ("by name, 3 tasks: Swarm, start-first", true)]
        {
            let outcome = swarm.by_name(3, &by_name, deployments, start_first)?;
            print(name, &outcome);
            peer.push(outcome);
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
    Ok(())
}
