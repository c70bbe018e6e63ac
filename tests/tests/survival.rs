//! What happens to a machine's traffic and tasks when it cannot be heard: at once, after its lease, and by whom.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, items, skip, text, wait_until};

const NOTICED: Duration = Duration::from_secs(60);
const SETTLING: Duration = Duration::from_secs(90);

/// One service everywhere, and one that must not run twice, away from the server's machine.
const SHOP: &str = "
name: shop
services:
  web:
    image: wharf/testserver:1
    ports: ['8080:8080']
    deploy: {mode: global}
  writer:
    image: wharf/testserver:1
    x-wharf: {single_writer: true}
    deploy: {placement: {constraints: [node.hostname != n1]}}
";

/// What the diary says, a line for each entry.
fn story(fleet: &Fleet) -> Result<String> {
    let said = fleet.try_wharf(["events", "--since", "1h", "--no-follow"])?;
    said.text()
}

#[track_caller]
fn wait_for_story(fleet: &Fleet, line: &str) {
    wait_until(NOTICED, &format!("the diary says `{line}`"), || {
        let story = story(fleet)?;
        ensure!(story.contains(line), "{story}");
        Ok::<_, anyhow::Error>(())
    });
}

/// The ready task of a service: its id and its node.
fn ready(fleet: &Fleet, service: &str) -> Result<Vec<(String, String)>> {
    let tasks = fleet.tasks("shop")?;
    let ready = tasks.iter().filter(|task| task["service"] == service && task["ready"] == true);
    Ok(ready.map(|task| (text(&task["id"]).to_owned(), text(&task["node"]).to_owned())).collect())
}

/// How many containers of the writer run on a machine.
fn writers(fleet: &Fleet, index: u8) -> Result<usize> {
    let said = fleet.node(index).docker(["ps", "--quiet", "--filter", "label=wharf.service=writer"])?;
    Ok(said.lines().count())
}

fn node(fleet: &Fleet, name: &str) -> Result<Value> {
    let nodes = fleet.try_json(["node", "ls"])?;
    let found = items(&nodes).iter().find(|node| node["name"] == name).cloned();
    found.ok_or_else(|| anyhow::anyhow!("no {name} in {nodes}"))
}

#[test]
fn a_machine_that_is_missed_gets_nothing_and_what_must_not_run_twice_is_ended_before_it_moves() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let file = fleet.file("shop", SHOP);
    fleet.ok(["up", "-y", "-f", &file]);
    let before = wait_until(SETTLING, "all is ready", || {
        let web = ready(&fleet, "web")?;
        ensure!(web.len() == 3 && ready(&fleet, "writer")?.len() == 1, "{web:?}");
        Ok::<_, anyhow::Error>(web)
    });

    // A hiccup: the cable is in again as soon as it is noticed.
    let (writer, home) = ready(&fleet, "writer").unwrap().remove(0);
    let index: u8 = home.trim_start_matches('n').parse().unwrap();
    let victim = fleet.node(index);
    victim.isolate().unwrap();
    wait_for_story(&fleet, &format!("node {home} is suspected to be gone"));
    victim.rejoin().unwrap();
    wait_until(NOTICED, "it is heard again", || {
        let node = node(&fleet, &home)?;
        ensure!(node["state"] == "ready" && node["suspected_by"].is_null(), "{node}");
        Ok::<_, anyhow::Error>(())
    });
    assert_eq!(ready(&fleet, "web").unwrap(), before, "nothing is replaced");
    assert_eq!(ready(&fleet, "writer").unwrap(), [(writer.clone(), home.clone())]);

    // Its agent is killed while it is cut off: nobody is left there to stop the writer but the process that is for that.
    victim.isolate().unwrap();
    victim.service("wharf").kill().unwrap();
    wait_until(NOTICED, "the writer is ended on the machine that is cut off", || {
        let running = writers(&fleet, index)?;
        ensure!(running == 0, "{running} run");
        ensure!(ready(&fleet, "writer")?.iter().all(|(task, _)| *task == writer), "it has moved before");
        Ok::<_, anyhow::Error>(())
    });
    let elsewhere = wait_until(SETTLING, "the writer runs elsewhere", || {
        let ready = ready(&fleet, "writer")?;
        let moved = ready.iter().find(|(task, node)| *task != writer && *node != home);
        moved.cloned().ok_or_else(|| anyhow::anyhow!("{ready:?}"))
    });
    for line in [
        format!("node {home} is down"),
        format!(
            "shop-writer-1 is lost: its node {home} is down, and its right to run the task there is over"
        ),
        format!("shop-writer-1 starts on {} in place of the one that was lost on {home}", elsewhere.1),
    ] {
        wait_for_story(&fleet, &line);
    }
    println!("{}", story(&fleet).unwrap());

    victim.rejoin().unwrap();
    victim.service("wharf").start().unwrap();
    wait_until(SETTLING, "it is back, and one writer runs", || {
        let node = node(&fleet, &home)?;
        ensure!(node["state"] == "ready", "{node}");
        ensure!(ready(&fleet, "web")?.len() == 3, "its own task of the global service is back");
        let running = (1..=3).map(|n| writers(&fleet, n)).sum::<Result<usize>>()?;
        ensure!(running == 1 && ready(&fleet, "writer")? == [elsewhere.clone()], "{running} run");
        Ok::<_, anyhow::Error>(())
    });
}
