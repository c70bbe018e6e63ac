//! One address per service, and published ports that keep their clients' addresses, on a real cluster.

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use wharf_tests::{Fleet, items, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

const APP: &str = "services:
  web:
    image: wharf/testserver:1
    environment: {VERSION: \"1\"}
    ports: ['8080:8080']
    deploy: {replicas: 3, endpoint_mode: vip, placement: {max_replicas_per_node: 1}}
  asker:
    image: busybox:1
    command: [sleep, infinity]
    stop_grace_period: 0s
    deploy: {mode: global}
";

/// Runs a line of shell in the asker's container on a node.
fn ask(fleet: &Fleet, node: u8, line: &str) -> Result<String> {
    let machine = fleet.node(node);
    let id = machine.run(["docker", "ps", "-q", "--filter", "name=asker"])?;
    let id = id.lines().next().context("the asker does not run")?.to_owned();
    machine.run(["docker", "exec", &id, "sh", "-c", line])
}

/// The addresses that a name leads to for the asker on a node.
fn resolve(fleet: &Fleet, node: u8, name: &str) -> Result<Vec<String>> {
    let said = ask(fleet, node, &format!("nslookup -type=a {name} || true"))?;
    let answer = said.split_once("Name:").map(|(_, answer)| answer.to_owned()).unwrap_or_default();
    let mut addresses: Vec<_> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("Address: "))
        .map(|at| at.trim().to_owned())
        .collect();
    addresses.sort_unstable();
    Ok(addresses)
}

/// How often each task answered.
fn spread(fleet: &Fleet, node: u8, times: u32) -> Result<BTreeMap<String, u32>> {
    let line =
        format!("for i in $(seq {times}); do timeout 5 wget -qO- http://web:8080/ || echo failed; done");
    let mut counts = BTreeMap::new();
    for line in ask(fleet, node, &line)?.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn one_address_per_service_and_published_ports_that_keep_their_clients() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let file = fleet.file("shop", APP);
    fleet.ok(["up", "-y", "-f", &file]);

    // One address everywhere, from when the container is programmed on.
    let vip = wait_until(SOON, "the name leads to one address", || {
        let mut all = Vec::new();
        for node in 1..=3 {
            all.push(resolve(&fleet, node, "web")?);
        }
        match &all[..] {
            [one, two, three] if one.len() == 1 && one == two && two == three => Ok(one[0].clone()),
            _ => bail!("{all:?}"),
        }
    });
    let tasks = resolve(&fleet, 1, "tasks.web").expect("it is answered");
    assert_eq!(tasks.len(), 3);
    assert!(!tasks.contains(&vip));
    let reverse = ask(&fleet, 1, &format!("nslookup {vip}")).expect("it is answered");
    assert!(reverse.contains("name = web"), "{reverse}");

    // Evenly, from every node, the own replica among them: 40 each of 120, give or take.
    for node in 1..=3 {
        let counts = spread(&fleet, node, 120).expect("it is asked");
        assert_eq!(counts.len(), 3, "{counts:?}");
        assert!(counts.values().all(|count| (15..75).contains(count)), "{counts:?}");
    }

    // The client's own address by every node, whichever task it is led to.
    let client =
        fleet.cluster.in_network(own_address).expect("the client's place").expect("it has an address");
    wait_until(SOON, "tasks see the client by every node", || {
        for node in 1..=3 {
            let at = fleet.node(node).address();
            for _ in 0..6 {
                let seen = fleet.http(&format!("http://{at}:8080/client"))?;
                ensure!(seen.contains(&client), "by node {node}: {seen}, not {client}");
            }
        }
        Ok(())
    });

    // What others delete is back, in containers and on the nodes. (All of a container's rules would be the engine's resolver as well.)
    let flush = |node: u8| -> Result<()> {
        let machine = fleet.node(node);
        let id = machine.run(["docker", "ps", "-q", "--filter", "name=asker"])?;
        let pid = machine.run(["docker", "inspect", "-f", "{{.State.Pid}}", id.trim()])?;
        machine.run(["nsenter", "-n", "-t", pid.trim(), "nft", "delete", "table", "ip", "wharf"])?;
        machine.run(["nft", "delete", "table", "ip", "wharf_entry"]).map(drop)
    };
    flush(2).expect("it can be deleted");
    let at = fleet.node(2).address();
    assert!(fleet.http(&format!("http://{at}:8080/client")).is_ok(), "nobody is worse served meanwhile");
    wait_until(SOON, "rules are back", || {
        let counts = spread(&fleet, 2, 20)?;
        ensure!(!counts.contains_key("failed"), "{counts:?}");
        fleet.node(2).run(["nft", "list", "table", "ip", "wharf_entry"]).map(drop)
    });

    // A release loses no connection to the address.
    let next = fleet.file("shop", &APP.replace("VERSION: \"1\"", "VERSION: \"2\""));
    let mut release = fleet.spawn(["up", "-y", "-f", &next]);
    let mut asked = 0;
    while release.is_running() {
        let counts = spread(&fleet, 1, 40).expect("it is asked");
        assert!(!counts.contains_key("failed"), "after {asked}: {counts:?}");
        asked += 40;
    }
    assert!(asked > 0, "it took a moment");
    assert_eq!(
        resolve(&fleet, 1, "web").expect("it is answered"),
        std::slice::from_ref(&vip),
        "releases do not change it"
    );

    // Without ready tasks it is refused at once.
    fleet.ok(["stop", "-p", "shop", "web"]);
    wait_until(SOON, "the address refuses", || {
        let said = ask(&fleet, 1, &format!("wget -qO- http://{vip}:8080/ 2>&1 || true"))?;
        ensure!(said.contains("refused"), "{said}");
        Ok(())
    });
    let networks = fleet.json(["ps", "-p", "shop"]);
    assert!(
        !items(&networks).iter().any(|task| text(&task["service"]) == "web" && task["state"] == "running")
    );
}

/// The client's address on the switch.
fn own_address() -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip().to_string())
}
