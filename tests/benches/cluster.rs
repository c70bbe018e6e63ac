//! What a cluster costs where people wait for it, beside Docker Swarm on the same machines: a hundred tasks brought up, a node that loses
//! its power, a leader that is killed.
//!
//! `./x bench cluster [LAPS] [WORD]`: five laps of each unless said otherwise; with a word only `up`, `power` or `leader`. Needs root and
//! what the test cluster needs; `WHARF_BIN` names a program to measure instead of one that is built. This kernel may have no IPVS, so
//! Swarm's services are found by DNS round robin. The floor of `up` is the same containers made and started on bridges like ours by parallel
//! calls to the engines, with nothing else: who uses these engines cannot be faster.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Duration;

use anyhow::Result;
use wharf_testkit::cluster::{Cluster, Seed};
use wharf_tests::{
    Fleet,
    contest::{
        figures, goal, leader, median, power,
        up::{Arena, Lap},
    },
    servers::three_servers,
    skip, swarm,
};

fn main() -> Result<()> {
    if skip() {
        return Ok(());
    }
    let words: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let laps = words.iter().find_map(|word| word.parse().ok()).unwrap_or(5);
    let word = words.iter().find(|word| word.parse::<usize>().is_err()).cloned().unwrap_or_default();
    let mut goals = Vec::new();
    if "up".contains(&word) {
        goals.extend(a_hundred_tasks(laps)?);
    }
    if "power".contains(&word) {
        goals.extend(a_node_without_power(laps)?);
    }
    if "leader".contains(&word) {
        goals.extend(a_leader_killed(laps)?);
    }
    goals.iter().for_each(|goal| println!("{goal}"));
    Ok(())
}

fn a_hundred_tasks(laps: usize) -> Result<Vec<String>> {
    let arena = Arena::start(|note| println!("{note}"))?;
    let (mut ours, mut swarm, mut floor, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    println!("{}", Lap::head());
    for _ in 0..laps {
        let lap = |name, lap: Lap, into: &mut Vec<Lap>| {
            println!("{}", lap.line(name));
            into.push(lap);
        };
        let (up, end) = arena.ours()?;
        ends.push(end);
        lap("wharf up", up, &mut ours);
        lap("Swarm", arena.swarm()?, &mut swarm);
        lap("floor", arena.floor()?, &mut floor);
    }
    for (name, laps) in [("wharf up", &ours), ("Swarm", &swarm), ("floor", &floor)] {
        let told: Vec<_> = laps.iter().map(|lap| lap.told).collect();
        let there: Vec<_> = laps.iter().map(|lap| lap.there).collect();
        println!("{name:10} told    {}", figures(&told));
        println!("{name:10} running {}", figures(&there));
    }
    println!("{:10} ends    {}", "wharf up", figures(&ends));
    let ratio = |others: &[Lap]| {
        let each = ours.iter().zip(others);
        median(each.map(|(ours, other)| ours.told.as_secs_f64() / other.told.as_secs_f64()))
    };
    Ok(vec![
        goal("cluster_up_100_x_swarm", ratio(&swarm), 0.85),
        goal("cluster_up_100_x_floor", ratio(&floor), 1.15),
    ])
}

fn a_node_without_power(laps: usize) -> Result<Vec<String>> {
    let mut ours = Vec::new();
    for _ in 0..laps {
        // A machine that goes away again and again is given nothing for a while, so each lap has machines of its own.
        let fleet = Fleet::try_start(Cluster::builder().nodes(3).seed(Seed::basic()?))?;
        let loss = power::ours(&fleet)?;
        println!("power off, ours:  {}", loss.line());
        ours.push(loss);
    }
    let mut peer = Vec::new();
    {
        let cluster = swarm::machines(3, 1)?;
        cluster.node(1).docker(["network", "create", "-d", "overlay", "inside"])?;
        for _ in 0..laps {
            let replaced = power::swarm(&cluster)?;
            println!("power off, Swarm: replaced after {:>6.2} s", replaced.as_secs_f64());
            peer.push(replaced);
        }
    }
    let replaced: Vec<_> = ours.iter().map(|loss| loss.replaced).collect();
    let quiet: Vec<_> = ours.iter().map(|loss| loss.quiet).collect();
    println!("replaced, ours    {}", figures(&replaced));
    println!("replaced, Swarm   {}", figures(&peer));
    println!("quiet, ours       {}", figures(&quiet));
    Ok(vec![
        goal("cluster_power_off_replaced_x_swarm", middle(&replaced) / middle(&peer), 0.35),
        goal("cluster_power_off_quiet_s", middle(&quiet), 1.1),
    ])
}

fn a_leader_killed(laps: usize) -> Result<Vec<String>> {
    let mut ours = Vec::new();
    {
        let fleet = three_servers()?;
        leader::prepare(&fleet)?;
        for lap in 0..laps {
            let one = leader::ours(&fleet, lap)?;
            println!("leader killed, ours:  {}", one.line());
            ours.push(one);
        }
    }
    let mut peer = Vec::new();
    {
        let cluster = swarm::machines(3, 3)?;
        cluster.node(1).docker(["network", "create", "-d", "overlay", "inside"])?;
        leader::prepare_swarm(&cluster)?;
        for lap in 0..laps {
            let one = leader::swarm(&cluster, lap)?;
            println!("leader killed, Swarm: {}", one.line());
            peer.push(one);
        }
    }
    let accepted = |laps: &[leader::Interregnum]| laps.iter().map(|one| one.accepted).collect::<Vec<_>>();
    let decided = |laps: &[leader::Interregnum]| laps.iter().map(|one| one.decided).collect::<Vec<_>>();
    println!("accepted, ours    {}", figures(&accepted(&ours)));
    println!("accepted, Swarm   {}", figures(&accepted(&peer)));
    println!("decided, ours     {}", figures(&decided(&ours)));
    println!("decided, Swarm    {}", figures(&decided(&peer)));
    Ok(vec![
        goal(
            "cluster_leader_killed_accepted_x_swarm",
            middle(&accepted(&ours)) / middle(&accepted(&peer)),
            0.1,
        ),
        goal("cluster_leader_killed_decided_x_swarm", middle(&decided(&ours)) / middle(&decided(&peer)), 0.1),
    ])
}

/// The median in seconds.
fn middle(values: &[Duration]) -> f64 {
    median(values.iter().map(Duration::as_secs_f64))
}
