//! Names are exact while tasks are replaced every second and everything is broken once: what is answered on every node is compared with
//! what the kernel saw.

use wharf_tests::{
    Fleet,
    exactness::{self, NODE_LEASE, PROMISE, check},
    skip,
};

#[test]
fn no_name_leads_to_another_service_and_none_for_long_to_a_task_that_has_ended() -> anyhow::Result<()> {
    if skip() {
        return Ok(());
    }
    let fleet = Fleet::start(3);
    let run = exactness::run::run(&fleet, &exactness::short())?;
    let figures = check::judge(&run);
    let table = exactness::table(&run, &figures);
    println!("{table}");
    for (scenario, figures) in run.scenarios.iter().zip(&figures) {
        let name = &scenario.name;
        assert_eq!((figures.wrong, figures.unknown), (0, 0), "{name}:\n{table}");
        let stale = check::longest(&figures.stale);
        assert!(stale <= PROMISE * BUSY, "{name}: stale for {stale:?}\n{table}");
        let after_power_off = check::longest(&figures.stale_after_power_off);
        assert!(after_power_off <= NODE_LEASE + PROMISE, "{name}: stale for {after_power_off:?}\n{table}");
    }
    let asked: usize = figures.iter().map(|figures| figures.questions).sum();
    let ended: usize = figures.iter().map(|figures| figures.ended).sum();
    assert!(asked > 5_000 && ended > 20, "{asked} questions, {ended} ends\n{table}");
    Ok(())
}

/// How much slower than promised a machine may be that is busy with other tests.
const BUSY: u32 = 5;
