//! Where tasks are and how they move, on real nodes: explained, drained and made even again while somebody asks without pause.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{
    Fleet, Output,
    deployments::{self, Case},
    items,
    load::{self, Kind},
    skip, text, wait_until,
};

const SOON: Duration = Duration::from_secs(60);

#[track_caller]
fn exits<const N: usize>(fleet: &Fleet, code: i32, args: [&str; N]) -> Output {
    let output = fleet.wharf(args);
    assert_eq!(output.code, code, "{args:?}\n{}{}", output.stdout, output.stderr);
    output
}

/// How many tasks of the app serve on each node.
fn on_each(fleet: &Fleet) -> Result<BTreeMap<String, usize>> {
    let mut nodes = BTreeMap::new();
    for task in fleet.tasks("app")? {
        if task["ready"] == true {
            *nodes.entry(text(&task["node"]).to_owned()).or_default() += 1;
        }
    }
    Ok(nodes)
}

/// The most tasks of the app that there were at once beside those whose process is asked to stop, while `work` went on.
fn most_tasks<T>(fleet: &Fleet, work: impl FnOnce() -> T) -> (usize, T) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                let tasks = fleet.tasks("app").unwrap_or_default();
                let counts = |task: &&Value| {
                    let ended =
                        ["complete", "stopped", "failed", "lost"].contains(&text(&task["status"]["phase"]));
                    !ended && (task["stop"].is_null() || !task["draining"].is_null())
                };
                most = most.max(tasks.iter().filter(counts).count());
            }
            most
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        (watching.join().expect("nothing panics"), done)
    })
}

#[test]
fn a_node_is_drained_and_takes_its_share_again_without_a_request_lost() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    // What moves here moves because the test says so.
    exits(&fleet, 0, ["rebalance", "default", "--automatic", "off"]);
    let clients = vec![(Kind::KeepAlive, 6), (Kind::Fresh, 3), (Kind::Post, 2), (Kind::Http2, 2)];
    let case = Case { replicas: 6, clients, ..Case::new("moves", 0) };
    exits(&fleet, 0, ["up", "-y", "-f", &fleet.file("app", &case.file(1, &[]))]);
    let even: BTreeMap<_, _> = ["n1", "n2", "n3"].map(|node| (node.to_owned(), 2)).into();
    assert_eq!(on_each(&fleet).unwrap(), even);

    let explained = fleet.json(["explain", "app/web"]);
    let slots = items(&explained[0]["slots"]);
    assert_eq!(slots.len(), 6, "{explained}");
    assert!(slots.iter().all(|slot| slot["able"] == 3 && !items(&slot["why"]).is_empty()), "{explained}");

    let (report, (most, moved)) = deployments::while_asked(&fleet, &case, || {
        most_tasks(&fleet, || -> Result<Output> {
            let drained = fleet.try_wharf(["node", "drain", "n3", "--timeout", "100"])?;
            ensure!(drained.code == 0, "{drained:?}");
            ensure!(!on_each(&fleet)?.contains_key("n3"), "{:?}", on_each(&fleet)?);
            fleet.try_wharf(["node", "activate", "n3"])?.text()?;
            let moved = fleet.try_wharf(["rebalance", "-y", "--timeout", "100"])?;
            ensure!(moved.code == 0, "{moved:?}");
            Ok(moved)
        })
    })
    .unwrap();
    let moved = moved.unwrap();
    assert!(moved.stderr.contains("2 tasks have moved"), "{moved:?}");
    assert_eq!(on_each(&fleet).unwrap(), even);
    assert!(most <= 7, "one too many at a time, and there were {most}");
    let all = load::total(&report);
    assert!(all.asked > 1000, "{all:?}");
    assert_eq!(all.lost, 0, "{report:?}");
}

#[test]
fn what_cannot_be_done_is_refused_or_waited_for_with_its_reason() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    let file = "name: app\nservices:\n  tied:\n    image: busybox:1\n    command: sleep 10000\n    stop_grace_period: 0s\n    \
                deploy: {placement: {constraints: [node.labels.disk == ssd]}}\n";
    let path = fleet.file("app", file);

    // Without a place: which rule refuses whom, and what would help; done, it helps.
    exits(&fleet, 0, ["up", "-y", "--detach", "-f", &path]);
    let said = exits(&fleet, 0, ["explain", "app/tied"]).stdout;
    assert!(said.contains("without a place") && said.contains("0 of 2 machines can take it"), "{said}");
    assert!(said.contains("2 do not meet the constraint `node.labels.disk == ssd`"), "{said}");
    assert!(said.contains("hint: label n1: `wharf node label n1 disk=ssd`"), "{said}");
    let updated = exits(&fleet, 0, ["node", "update", "n1", "--label-add", "disk=ssd"]).stderr;
    assert!(updated.contains("n1 is active; labels disk=ssd"), "{updated}");
    wait_until(SOON, "it has its place", || {
        ensure!(on_each(&fleet)?.contains_key("n1"), "{}", fleet.try_wharf(["ps", "-p", "app"])?.stderr);
        Ok(())
    });

    // A drain that cannot end says who stays, and that it is not done.
    let left = exits(&fleet, 3, ["node", "drain", "n1", "--timeout", "3"]).stderr;
    assert!(left.contains("stays: tied.1 stays on n1 for now"), "{left}");
    assert!(left.contains("n1 still has 1 task(s) after 3 s"), "{left}");
    exits(&fleet, 0, ["node", "activate", "n1"]);

    // A quota says what is missing, and nothing is done.
    exits(&fleet, 0, ["quota", "set", "--tasks", "2"]);
    let refused = exits(&fleet, 1, ["scale", "-p", "app", "tied=3"]);
    assert!(refused.stderr.contains("the quota of environment default leaves 2 tasks for it"), "{refused:?}");
    exits(&fleet, 0, ["scale", "-p", "app", "tied=2"]);
    let table = exits(&fleet, 0, ["quota", "ls"]).stdout;
    assert!(table.contains("default      2 of 2"), "{table}");
    exits(&fleet, 0, ["quota", "rm"]);
    exits(&fleet, 1, ["quota", "rm"]);

    let wrong = exits(&fleet, 1, ["node", "update", "n1", "--taint", "gpu"]).stderr;
    assert!(wrong.contains("`gpu` is not a taint"), "{wrong}");
    exits(&fleet, 2, ["quota", "set"]);
    exits(&fleet, 2, ["node", "update", "n1", "--overcommit", "cpus"]);
}
