//! What a million tasks on ten thousand nodes take of memory: a process of its own that holds them, as the kernel counts it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use super::{Goal, cluster::Cluster, figure};

/// The argument of the process that holds them.
pub(crate) const HOLD: &str = "--hold-a-million-tasks";
const TASKS: usize = 1_000_000;
const NODES: usize = 10_000;

/// Makes the world, says so, and stays until somebody has looked.
pub(crate) fn hold() {
    let mut cluster = Cluster::of(NODES);
    cluster.run(TASKS, NODES, 100, 1000);
    let held = cluster.world.tasks().count();
    println!("{held}");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    // Still there when it was looked at.
    assert_eq!(cluster.world.tasks().count(), held);
}

pub(crate) fn measure() -> Vec<Goal> {
    let program = std::env::current_exe().unwrap();
    let mut child =
        Command::new(program).arg(HOLD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim().parse(), Ok(TASKS), "the process holds them");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    let kibibytes = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let (now, most) = (kibibytes("VmRSS:") / 1048576.0, kibibytes("VmHWM:") / 1048576.0);
    println!(
        "memory: {TASKS} tasks on {NODES} nodes: {} GiB, at most {} GiB, {} bytes per task",
        figure(now),
        figure(most),
        figure(now * 1024.0 * 1024.0 * 1024.0 / TASKS as f64)
    );
    vec![Goal::at_most("million_tasks_gib", most, 3.0)]
}
