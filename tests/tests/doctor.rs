//! What `wharf doctor network` and `wharf network trace` say of a cluster that is well, and of one that is broken on purpose: each thing by
//! name and with its remedy, and what can be mended is.
#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, items, skip, text, wait_until};

/// Rollouts, and tables on their way to nodes on a busy machine.
const SETTLING: Duration = Duration::from_secs(90);

const SHOP: &str = "
name: shop
services:
  web:
    image: wharf/testserver:1
    expose: ['8080']
    deploy: {mode: global}
  db:
    image: wharf/testserver:1
    networks: [back]
networks: {back: {}}
";

/// What must be done, each as problem, remedy, node and command in one text.
fn todo(report: &Value) -> Vec<String> {
    let joined = |todo: &Value| {
        ["problem", "remedy", "node", "command"].map(|key| text(&todo[key]).to_owned()).join(" | ")
    };
    items(&report["todo"]).iter().map(joined).collect()
}

/// The report of `wharf doctor network`, whatever it finds; the exit code says whether somebody must do something.
fn doctor(fleet: &Fleet, args: &[&str]) -> Result<Value> {
    let words = ["--format", "json", "doctor", "network"].into_iter().chain(args.iter().copied());
    let said = fleet.try_wharf(words)?;
    let report: Value = serde_json::from_str(&said.stdout)?;
    let wanted = i32::from(!items(&report["todo"]).is_empty());
    ensure!(said.code == wanted, "it exits with {} and says {report:#}", said.code);
    Ok(report)
}

/// Waits until the doctor says that somebody must do something whose text has all of `words`.
#[track_caller]
fn wait_for_todo(fleet: &Fleet, words: &[&str]) -> Vec<String> {
    wait_until(SETTLING, &format!("the doctor says {words:?}"), || {
        let found = todo(&doctor(fleet, &[])?);
        let is_it = |todo: &String| words.iter().all(|word| todo.contains(word));
        ensure!(found.iter().any(is_it), "it says {found:#?}");
        Ok::<_, anyhow::Error>(found)
    })
}

#[track_caller]
fn wait_until_well(fleet: &Fleet) -> Value {
    wait_until(SETTLING, "every network is well", || {
        let report = doctor(fleet, &[])?;
        ensure!(items(&report["todo"]).is_empty(), "{report:#}");
        Ok::<_, anyhow::Error>(report)
    })
}

/// The bridge's number in device names of the network on which all web tasks are.
fn number(fleet: &Fleet) -> String {
    let network = fleet.json(["network", "inspect", "shop_default"]);
    text(&network["bridge"]).trim_start_matches("wh").to_owned()
}

#[test]
fn what_is_broken_is_named_with_its_remedy_and_mended_where_that_is_possible() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let file = fleet.file("shop", SHOP);
    fleet.ok(["up", "-y", "-f", &file]);

    let report = wait_until_well(&fleet);
    assert_eq!(items(&report["networks"]).len(), 2, "{report:#}");
    assert!(report["probes"].as_u64().unwrap() > 50, "every pair is tried: {report:#}");
    networks_are_listed_and_inspected(&fleet);
    traces_explain_and_measure(&fleet);
    a_blocked_port_is_told_from_a_dead_machine(&fleet);
    what_is_blocked_that_is_needed_only_without_servers_is_told_as_well(&fleet);
    kernel_state_that_was_deleted_is_mended_and_told(&fleet);
    a_route_in_the_way_is_named(&fleet);
    a_smaller_interface_is_named(&fleet);
    a_machine_without_agent_is_named(&fleet);
}

fn networks_are_listed_and_inspected(fleet: &Fleet) {
    let all = fleet.json(["network", "ls"]);
    let names: Vec<_> = items(&all).iter().map(|network| text(&network["name"])).collect();
    assert_eq!(names, ["shop_back", "shop_default"]);
    wait_until(SETTLING, "every node acknowledges its tables", || {
        let network = fleet.try_json(["network", "inspect", "shop/default"])?;
        let on = items(&network["on"]);
        ensure!(on.len() == 3 && on.iter().all(|node| node["acknowledged"] == true), "{network:#}");
        let members = items(&network["members"]);
        let is_known = |member: &Value| items(&member["names"]).iter().any(|name| name == "web");
        ensure!(members.len() == 3 && members.iter().all(is_known), "{network:#}");
        Ok::<_, anyhow::Error>(())
    });
    let unknown = fleet.wharf(["network", "inspect", "shop_defualt"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("did you mean `shop_default`?"), "{unknown:?}");
}

fn traces_explain_and_measure(fleet: &Fleet) {
    let trace = fleet.json(["network", "trace", "n1", "web", "--port", "8080"]);
    assert_eq!(trace["works"], true, "{trace:#}");
    let probes = items(&trace["probes"]);
    assert!(probes.iter().all(|probe| probe["came_through"] == true), "{trace:#}");
    assert!(probes[0]["micros"].as_u64().is_some(), "a round trip is measured: {trace:#}");
    let apart = fleet.wharf(["network", "trace", "web", "db"]);
    assert_eq!(apart.code, 1, "{apart:?}");
    assert!(apart.stdout.contains("they share no network"), "{apart:?}");
}

fn a_blocked_port_is_told_from_a_dead_machine(fleet: &Fleet) {
    let rule = format!("INPUT -s {} -p udp --dport 4790 -j DROP", fleet.node(1).address());
    fleet.node(2).sh(&format!("iptables -I {rule}")).unwrap();
    let found = wait_for_todo(fleet, &["UDP port 4790 from n1 to n2 is blocked", "| n2 | iptables -I INPUT"]);
    assert_eq!(found.len(), 1, "told once, and the open direction not at all: {found:#?}");
    let trace = fleet.wharf(["network", "trace", "n1", "n2"]);
    assert_eq!(trace.code, 1, "{trace:?}");
    assert!(trace.stdout.contains("UDP port 4790 from n1 to n2 is blocked"), "{trace:?}");
    fleet.node(2).sh(&format!("iptables -D {rule}")).unwrap();
    wait_until_well(fleet);
}

fn what_is_blocked_that_is_needed_only_without_servers_is_told_as_well(fleet: &Fleet) {
    let rule = format!("INPUT -s {} -p udp --dport 7420 -j DROP", fleet.node(1).address());
    fleet.node(2).sh(&format!("iptables -I {rule}")).unwrap();
    let report = doctor(fleet, &[]).unwrap();
    assert!(items(&report["todo"]).is_empty(), "nothing is broken: {report:#}");
    let [note] = items(&report["notes"]) else { panic!("the open direction is none: {report:#}") };
    assert!(text(&note["problem"]).starts_with("UDP port 7420 from n1 to n2 is blocked"), "{note}");
    assert!(text(&note["command"]).starts_with("iptables -I INPUT") && note["node"] == "n2", "{note}");
    let said = fleet.ok(["doctor", "network"]);
    assert!(said.contains("UDP port 7420 from n1 to n2 is blocked"), "{said}");
    fleet.node(2).sh(&format!("iptables -D {rule}")).unwrap();
    assert_eq!(wait_until_well(fleet)["notes"], Value::Array(Vec::new()));
}

fn kernel_state_that_was_deleted_is_mended_and_told(fleet: &Fleet) {
    let port = format!("wv{}", number(fleet));
    let forget = format!(
        "bridge fdb show dev {port} | grep dst | while read mac rest; do bridge fdb del $mac dev {port}; done"
    );
    fleet.node(1).sh(&forget).unwrap();
    fleet.node(3).sh(&format!("ip link del {port}")).unwrap();
    let report = wait_until_well(fleet);
    let mended: Vec<_> = items(&report["mended"])
        .iter()
        .map(|mend| format!("{} {} {}", text(&mend["node"]), text(&mend["network"]), text(&mend["fault"])))
        .collect();
    for wanted in ["n1 shop_default forwarding entry missing", "n3 shop_default VXLAN port missing"] {
        assert!(mended.iter().any(|mend| mend == wanted), "{wanted}: {mended:#?}");
    }
}

fn a_route_in_the_way_is_named(fleet: &Fleet) {
    let network = fleet.json(["network", "inspect", "shop_default"]);
    let subnet = text(&network["subnet"]).split('/').next().unwrap().to_owned();
    fleet.node(2).sh(&format!("ip route add {subnet}/25 dev eth0")).unwrap();
    wait_for_todo(
        fleet,
        &[&format!("n2 has a route to {subnet}/25 by eth0"), "network shop_default", "| n2 | ip route del"],
    );
    fleet.node(2).sh(&format!("ip route del {subnet}/25 dev eth0")).unwrap();
    wait_until_well(fleet);
}

fn a_smaller_interface_is_named(fleet: &Fleet) {
    fleet.node(3).sh("ip link set dev eth0 mtu 1400").unwrap();
    wait_for_todo(fleet, &["different MTUs", "n3 eth0 1400", "| n3 | ip link set dev eth0 mtu 1500"]);
    fleet.node(3).sh("ip link set dev eth0 mtu 1500").unwrap();
    wait_until_well(fleet);
}

fn a_machine_without_agent_is_named(fleet: &Fleet) {
    fleet.node(3).service("wharf").stop().unwrap();
    let found = wait_for_todo(fleet, &["n3 cannot be looked at", "does `wharf agent run` run"]);
    assert_eq!(found.len(), 1, "{found:#?}");
}
