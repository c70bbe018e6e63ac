//! How exact names are while everything changes and breaks: real nodes, asked all the time, compared with what the kernel saw.
//!
//! - `tests/tests/exactness.rs` runs a short plan and holds it to what the product promises; `./x bench exactness` runs a longer one.
//! - Truth, questions and answers are stamped by the machine's one monotonic clock, and compared when all is over ([`check`]).

pub mod ask;
pub mod check;
pub mod run;
pub mod truth;

use std::{fmt::Write as _, time::Duration};

use wharf_testkit::cluster::clock::Step;

use self::{
    check::{Figures, Run, longest, median},
    run::{Break, Plan},
};

/// How long a node is waited for before it is given up.
pub const NODE_LEASE: Duration = Duration::from_secs(15);
/// How long an address may be answered after its task's end on a live node.
pub const PROMISE: Duration = Duration::from_secs(1);

/// How far clocks are set wrong.
const HOUR: Duration = Duration::from_hours(1);

/// Each fault once, in little more than a minute.
pub fn short() -> Plan {
    let s = Duration::from_secs;
    vec![
        (Break::Nothing, s(12)),
        (Break::Agent(2), s(6)),
        (Break::Engine(3, s(2)), s(6)),
        (Break::Server(s(8)), s(7)),
        (Break::Partition(2, s(10)), s(6)),
        (Break::Clock(1, Step::Ahead(HOUR), s(3)), s(2)),
        (Break::Clock(2, Step::Back(HOUR), s(3)), s(2)),
        (Break::Power(3, s(20)), s(0)),
    ]
}

/// The faults with longer cuts, so many times.
pub fn long(rounds: u32) -> Plan {
    let s = Duration::from_secs;
    let round = [
        (Break::Nothing, s(30)),
        (Break::Agent(2), s(10)),
        (Break::Agent(3), s(10)),
        (Break::Engine(3, s(2)), s(10)),
        (Break::Engine(2, s(10)), s(10)),
        (Break::Server(s(2)), s(10)),
        (Break::Server(s(10)), s(10)),
        (Break::Partition(2, s(10)), s(10)),
        (Break::Isolation(3, s(10)), s(10)),
        (Break::Partition(3, s(30)), s(15)),
        (Break::Isolation(2, s(30)), s(15)),
        (Break::Clock(1, Step::Ahead(HOUR), s(10)), s(10)),
        (Break::Clock(1, Step::Back(HOUR), s(10)), s(10)),
        (Break::Clock(2, Step::Ahead(HOUR), s(10)), s(10)),
        (Break::Clock(3, Step::Back(HOUR), s(10)), s(10)),
        (Break::Power(3, s(25)), s(15)),
    ];
    (0..rounds).flat_map(|_| round).collect()
}

/// The figures of a run, as a table for people, with examples of what should not be.
pub fn table(run: &Run, figures: &[Figures]) -> String {
    let mut text = format!(
        "{:<34} {:>7} {:>6} {:>15} {:>9} {:>9} {:>15} {:>9} {:>6} {:>6} {:>5} {:>5} {:>13}\n",
        "scenario",
        "asked",
        "ended",
        "stale med/max",
        "in fault",
        "power off",
        "new med/max",
        "gap max",
        "wrong",
        "nobody",
        "empty",
        "fail",
        "silent (max)"
    );
    for (scenario, f) in run.scenarios.iter().zip(figures) {
        let _ = writeln!(
            text,
            "{:<34} {:>7} {:>6} {:>15} {:>9} {:>9} {:>15} {:>9} {:>6} {:>6} {:>5} {:>5} {:>13}",
            scenario.name,
            f.questions,
            f.ended,
            both(&f.stale),
            some(&f.stale_in_fault),
            some(&f.stale_after_power_off),
            both(&f.appeared),
            some(&f.gaps),
            f.wrong,
            f.unknown,
            f.empty,
            f.failed,
            format!("{} ({})", f.silent, some(&f.silences)),
        );
    }
    for (scenario, figures) in run.scenarios.iter().zip(figures) {
        for (_, example) in &figures.examples {
            let _ = writeln!(text, "  {}: {example}", scenario.name);
        }
    }
    text
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}
fn some(times: &[Duration]) -> String {
    if times.is_empty() { "-".to_owned() } else { seconds(longest(times)) }
}
fn both(times: &[Duration]) -> String {
    if times.is_empty() {
        "-".to_owned()
    } else {
        format!("{} {}", seconds(median(times)), seconds(longest(times)))
    }
}
