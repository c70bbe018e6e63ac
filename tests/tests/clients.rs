//! Which address tasks see of clients of published ports, on a real cluster.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use wharf_tests::{Fleet, items, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Servers that say their tasks' names and whom they see: on a network with IPv6, and on a routed one. And one that listens on IPv4 alone.
const APP: &str = r#"services:
  six: &says
    image: busybox:1
    command:
      - sh
      - -c
      - |
        mkdir /tmp/cgi-bin
        printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\necho "$$(hostname) $$REMOTE_ADDR"\n' >/tmp/cgi-bin/client
        chmod 755 /tmp/cgi-bin/client
        exec httpd -f -p 80 -h /tmp
    stop_grace_period: 0s
    ports: ['8081:80']
    networks: [six]
    deploy: {mode: global}
  routed: {<<: *says, ports: ['8082:80'], networks: [routed]}
  old:
    image: wharf/testserver:1
    ports: ['8083:8080']
    networks: [six]
    deploy: {mode: global}
networks: {six: {enable_ipv6: true}, routed: {x-wharf: {backend: routed}}}
"#;

/// The client's IPv6 address, and node I's.
const CLIENT6: &str = "fd99::2";
fn node6(node: u8) -> String {
    format!("[fd99::1{node}]")
}

/// The node of each task, by name.
fn nodes(fleet: &Fleet) -> Result<BTreeMap<String, u8>> {
    let tasks = fleet.tasks("clients")?;
    let node = |task: &serde_json::Value| -> Result<(String, u8)> {
        Ok((text(&task["name"]).to_owned(), text(&task["node"]).trim_start_matches('n').parse()?))
    };
    tasks.iter().map(node).collect()
}

/// Which task answers at this address of a node, and whom it sees.
fn ask(fleet: &Fleet, at: &str) -> Result<(String, String)> {
    let said = fleet.http(&format!("http://{at}/cgi-bin/client"))?;
    let (task, seen) = said.trim().split_once(' ').with_context(|| format!("{at} says {said:?}"))?;
    let seen = seen.trim_matches(['[', ']']).trim_start_matches("::ffff:");
    Ok((task.to_owned(), seen.to_owned()))
}

#[test]
fn tasks_see_clients_by_every_node_and_nobody_is_worse_served() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let ip = |node: u8| fleet.node(node).sh(&format!("ip -6 addr add fd99::1{node}/64 dev eth0 nodad"));
    for node in 1..=3 {
        ip(node).expect("nodes have IPv6");
    }
    let own = ["ip", "-6", "addr", "add", &format!("{CLIENT6}/64"), "dev", "eth0", "nodad"];
    assert!(fleet.cluster.client_exec(own).is_ok_and(|output| output.is_success()));
    let client = fleet.cluster.client_exec(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
    let client = client.and_then(|shown| shown.text()).expect("the client's addresses");
    let client = client.split_whitespace().nth(3).and_then(|net| net.split('/').next()).expect("it has one");

    let file = fleet.file("clients", APP);
    fleet.ok(["up", "-y", "-f", &file]);
    let nodes = nodes(&fleet).expect("they are listed");
    assert_eq!(nodes.len(), 9, "{nodes:?}");

    wait_until(SOON, "tasks see clients of both families by every node", || {
        for node in 1..=3 {
            let at = [(fleet.node(node).address().to_string(), client), (node6(node), CLIENT6)];
            for (at, client) in at {
                for _ in 0..6 {
                    let (task, seen) = ask(&fleet, &format!("{at}:8081"))?;
                    ensure!(seen == client, "{task} by node {node} at {at}: {seen}, not {client}");
                }
            }
        }
        Ok(())
    });

    // What listens on IPv4 alone serves everybody at once, and sees those that it can see.
    for node in 1..=3 {
        for _ in 0..6 {
            let seen = fleet.http(&format!("http://{}:8083/client", node6(node))).expect("it answers");
            assert!(!seen.contains(client), "{seen}");
        }
    }
    wait_until(SOON, "clients with IPv4 addresses are seen there", || {
        for node in 1..=3 {
            for _ in 0..6 {
                let seen = fleet.http(&format!("http://{}:8083/client", fleet.node(node).address()))?;
                ensure!(seen.contains(client), "by node {node}: {seen}, not {client}");
            }
        }
        Ok(())
    });

    wait_until(SOON, "tasks on routed networks see clients by their own nodes", || {
        let mut at_home = 0;
        for node in 1..=3 {
            for _ in 0..6 {
                let (task, seen) = ask(&fleet, &format!("{}:8082", fleet.node(node).address()))?;
                let Some(home) = nodes.get(&task) else { bail!("{task} is not in {nodes:?}") };
                let sees = seen == client;
                ensure!(sees == (*home == node), "{task} of node {home} by node {node}: {seen}");
                at_home += u8::from(sees);
            }
        }
        ensure!(at_home >= 3, "every node leads to its own task as well: {at_home}");
        Ok(())
    });

    for node in ["n1", "n2", "n3"] {
        let problems = fleet.json(["node", "inspect", node])["problems"].clone();
        assert!(items(&problems).is_empty(), "{node}: {problems}");
    }
}
