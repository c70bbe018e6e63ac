//! How exact names are under constant change and every fault there is: the longer version of the test of that name.
//!
//! `./x bench exactness [ROUNDS]`; a round takes about seven minutes. Needs root and what the test cluster needs.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Duration;

use anyhow::Result;
use wharf_tests::{
    Fleet,
    exactness::{self, NODE_LEASE, PROMISE, check},
    skip,
};

fn main() -> Result<()> {
    if skip() {
        return Ok(());
    }
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let plan = match arguments.first().map(String::as_str) {
        Some("short") => exactness::short(),
        rounds => exactness::long(rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(1)),
    };
    let fleet = Fleet::start(3);
    let run = exactness::run::run(&fleet, &plan)?;
    let figures = check::judge(&run);
    println!("{}", exactness::table(&run, &figures));
    let over = |of: fn(&check::Figures) -> &Vec<Duration>| {
        check::longest(&figures.iter().flat_map(|figures| of(figures).clone()).collect::<Vec<_>>())
    };
    let sum = |of: fn(&check::Figures) -> usize| figures.iter().map(of).sum::<usize>();
    let goal = |name: &str, value: f64, target: f64| {
        let met = if value <= target { "met" } else { "short" };
        println!("goal {name} {value:.3} {target} {met}");
    };
    goal("exactness-stale-seconds", over(|f| &f.stale).as_secs_f64(), PROMISE.as_secs_f64());
    goal(
        "exactness-stale-after-power-off-seconds",
        over(|f| &f.stale_after_power_off).as_secs_f64(),
        NODE_LEASE.as_secs_f64(),
    );
    #[expect(clippy::cast_precision_loss, reason = "few")]
    goal("exactness-wrong-answers", (sum(|f| f.wrong) + sum(|f| f.unknown)) as f64, 0.0);
    Ok(())
}
