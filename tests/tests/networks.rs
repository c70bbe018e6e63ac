//! Networks of every backend side by side on a real cluster: who reaches whom, and nobody else; a network that changes its backend under
//! load; and what is left of them.
#![expect(clippy::unwrap_used, reason = "a test panics")]
#![expect(clippy::print_stdout, reason = "figures for whoever measures")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv6Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use wharf_tests::{Fleet, items, skip, text, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// A web server by IPv4 and IPv6 that says its task's name, and a shell.
const PEER: &str = "
    image: busybox:1
    command: [sh, -c, \"hostname > /tmp/index.html; head -c 100000 /dev/zero > /tmp/big; exec httpd -f -p 80 -h /tmp\"]
    stop_grace_period: 0s";

/// The apps: IPv6 with an address of one's own and a network without a way out, IPv6 besides, two routed ones, an encrypted one with
/// a service on two networks of different backends, one on the nodes' segment.
const APPS: [(&str, &str); 6] = [
    (
        "six",
        "services:
  peer: &peer{PEER}
    deploy: {mode: global}
  db: {<<: *peer, deploy: {replicas: 1}, networks: {default: {ipv6_address: \"fd5a:7c1e:9b02::db\"}}}
  shut: {<<: *peer, networks: [inner]}
networks:
  default:
    enable_ipv6: true
    ipam: {config: [{subnet: 10.5.0.0/24}, {subnet: \"fd5a:7c1e:9b02::/64\"}]}
  inner: {internal: true, enable_ipv6: true}
",
    ),
    (
        "ula",
        "services:
  peer:{PEER}
    deploy: {mode: global}
networks: {default: {enable_ipv6: true}}
",
    ),
    (
        "fast",
        "services:
  peer:{PEER}
    deploy: {mode: global}
  web: {image: wharf/testserver:1, ports: ['8081:8080'], deploy: {mode: global}}
networks: {default: {x-wharf: {backend: routed}}}
",
    ),
    (
        "other",
        "services:
  peer:{PEER}
    deploy: {mode: global}
networks: {default: {x-wharf: {backend: routed}}}
",
    ),
    (
        "secret",
        "services:
  peer: &peer{PEER}
    deploy: {mode: global}
  both: {<<: *peer, deploy: {replicas: 1}, networks: [default, extra]}
  end: {<<: *peer, deploy: {replicas: 1}, networks: [extra]}
networks: {default: {x-wharf: {backend: wireguard}}, extra: {x-wharf: {backend: routed}}}
",
    ),
    (
        "lan",
        "services:
  peer:{PEER}
    deploy: {mode: global}
networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.66.0.0/24}]}}}
",
    ),
];

/// The app whose network changes.
const MOVING: &str = "services:
  peer:{PEER}
    ports: ['8082:80']
    deploy: {mode: global}
networks: {default: {x-wharf: {backend: BACKEND}}}
";

/// What a node has of networks: devices, routes, rules.
const LEFT: &str = "ip -br link | grep -E '^(wh|wv|wm|wharf-wg)'; ip route | grep -E 'proto 8[67]| wh'; ip -6 route | grep ' wh';
    nft list tables | grep wharf; iptables -S | grep WHARF; pgrep -f '[e]xe wireguard'; true";

/// A task that answers on port 80.
#[derive(Debug, Default)]
struct Member {
    node: u8,
    /// Its networks.
    networks: BTreeSet<String>,
    /// What it is asked by on each: its name and its addresses.
    at: BTreeMap<String, Vec<String>>,
}

/// Runs a line of shell in a task's container.
fn inside(fleet: &Fleet, node: u8, task: &str, line: &str) -> Result<String> {
    let machine = fleet.node(node);
    let id = machine.docker(["ps", "-q", "--filter", &format!("name={task}")])?;
    let id = id.lines().next().with_context(|| format!("{task} does not run on node {node}"))?.to_owned();
    machine.docker(["exec", &id, "sh", "-c", line])
}

/// The tasks on networks of these apps that answer on port 80, by their names.
fn members(fleet: &Fleet, apps: &[&str]) -> Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::<String, Member>::new();
    for network in items(&fleet.try_json(["network", "ls"])?) {
        if !apps.contains(&text(&network["app"])) {
            continue;
        }
        let name = text(&network["name"]);
        for found in items(&fleet.try_json(["network", "inspect", name])?["members"]) {
            let task = text(&found["task"]);
            if task.contains("-web-") {
                continue;
            }
            let member = members.entry(task.to_owned()).or_default();
            member.node = text(&found["node"]).trim_start_matches('n').parse()?;
            member.networks.insert(name.to_owned());
            let at = member.at.entry(name.to_owned()).or_default();
            at.push(task.to_owned());
            at.push(text(&found["address"]).to_owned());
            if let Some(address) = found["address6"].as_str() {
                at.push(format!("[{address}]"));
            }
        }
    }
    Ok(members)
}

/// Each task asks for all others by name and every address: it reaches those it shares a network with, and no others, ever.
#[track_caller]
fn all_reach_whom_they_share_a_network_with(fleet: &Fleet, apps: &[&str]) -> BTreeMap<String, Member> {
    let begin = Instant::now();
    let members = members(fleet, apps).unwrap();
    let all: BTreeSet<_> = members.values().flat_map(|member| member.at.values().flatten()).collect();
    let mut targets = String::new();
    for target in &all {
        write!(targets, "{target} ").unwrap();
    }
    let line = format!(
        "for at in {targets}; do (timeout 4 wget -qO /dev/null http://$at/ 2>/dev/null && echo $at) & done; wait"
    );
    let asking: Vec<_> = members.iter().collect();
    let mut asked = 0;
    thread::scope(|scope| {
        let threads: Vec<_> = asking
            .chunks(asking.len().div_ceil(6))
            .map(|chunk| {
                let (line, members) = (&line, &members);
                scope.spawn(move || {
                    for (task, member) in chunk {
                        let wanted: BTreeSet<_> = members
                            .values()
                            .flat_map(|other| {
                                member.networks.iter().filter_map(|network| other.at.get(network))
                            })
                            .flatten()
                            .cloned()
                            .collect();
                        wait_until(SOON, &format!("{task} reaches those it shares a network with"), || {
                            let said = inside(fleet, member.node, task, line)?;
                            let reached: BTreeSet<_> = said.lines().map(str::to_owned).collect();
                            let others: Vec<_> = reached.difference(&wanted).collect();
                            assert!(others.is_empty(), "{task} reaches {others:?}");
                            let missing: Vec<_> = wanted.difference(&reached).collect();
                            ensure!(missing.is_empty(), "not {missing:?}");
                            Ok(())
                        });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
            asked += 1;
        }
    });
    assert!(asked > 0);
    println!(
        "{} tasks asked for {} names and addresses each in {:.1} s",
        members.len(),
        all.len(),
        begin.elapsed().as_secs_f64()
    );
    members
}

/// The task of a service on a node, with its first network.
fn task<'a>(members: &'a BTreeMap<String, Member>, prefix: &str, node: u8) -> (&'a str, &'a Member) {
    let found = members.iter().find(|(task, member)| task.starts_with(prefix) && member.node == node);
    let (task, member) = found.unwrap_or_else(|| panic!("no task of {prefix} on node {node}: {members:#?}"));
    (task, member)
}

#[test]
fn networks_of_every_backend_lead_to_their_members_and_to_nobody_else() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    // New nodes would take their share of the tasks, and here those are compared with what they were.
    fleet.ok(["rebalance", "default", "--automatic", "off"]);
    a_subnet_that_a_node_reaches_is_refused(&fleet);
    bad_addresses_are_refused_with_their_place(&fleet);

    let begin = Instant::now();
    thread::scope(|scope| {
        for (app, content) in APPS {
            let file = fleet.file(app, &content.replace("{PEER}", PEER));
            let fleet = &fleet;
            scope.spawn(move || fleet.ok(["up", "-y", "-f", &file]));
        }
    });
    println!("six apps are up in {:.1} s", begin.elapsed().as_secs_f64());
    let members = all_reach_whom_they_share_a_network_with(&fleet, &APPS.map(|(app, _)| app));

    ipv6_has_names_fixed_addresses_and_inner_networks(&fleet, &members);
    routed_networks_have_blocks_and_keep_addresses(&fleet, &members);
    encrypted_networks_carry_large_answers(&fleet, &members);
    thread::scope(|scope| {
        for (app, _) in APPS.iter().filter(|(app, _)| *app != "secret") {
            scope.spawn(|| fleet.ok(["down", "-y", "-p", app]));
        }
    });
    a_network_changes_its_backend_under_load(&fleet);
    thread::scope(|scope| {
        for app in ["secret", "moving"] {
            let fleet = &fleet;
            scope.spawn(move || fleet.ok(["down", "-y", "-p", app]));
        }
    });
    wait_until(SOON, "nothing of them is left on any node", || {
        for node in 1..=3 {
            let left = fleet.node(node).sh(LEFT)?;
            ensure!(left.trim().is_empty(), "on node {node}: {left}");
        }
        Ok(())
    });
}

fn a_subnet_that_a_node_reaches_is_refused(fleet: &Fleet) {
    let via = fleet.node(3).address();
    fleet.node(2).sh(&format!("ip route add 172.30.0.0/16 via {via}")).unwrap();
    let file = fleet.file(
        "clash",
        &format!("services:\n  peer:{PEER}\nnetworks: {{default: {{ipam: {{config: [{{subnet: 172.30.7.0/24}}]}}}}}}\n"),
    );
    wait_until(SOON, "the plan knows what the node reaches", || {
        let plan = fleet.try_wharf(["up", "--dry-run", "-f", &file])?;
        ensure!(format!("{plan:?}").contains("172.30.0.0/16"), "{plan:?}");
        Ok(())
    });
    let said = fleet.wharf(["up", "-y", "-f", &file]);
    assert_eq!(said.code, 1, "{said:?}");
    for wanted in ["172.30.7.0/24", "n2", &format!("172.30.0.0/16 via {via}"), "hint"] {
        assert!(said.stderr.contains(wanted), "{wanted}: {said:?}");
    }
    assert!(items(&fleet.json(["network", "ls"])).is_empty());
    assert!(
        fleet.tasks("clash").is_ok_and(|tasks| tasks.is_empty())
            || !fleet.wharf(["ps", "-p", "clash"]).is_success()
    );
    fleet.node(2).sh("ip route del 172.30.0.0/16").unwrap();
}

fn bad_addresses_are_refused_with_their_place(fleet: &Fleet) {
    let content = APPS[0].1.replace("{PEER}", PEER).replace("9b02::db", "9b03::db");
    let line = content.lines().position(|line| line.contains("9b03")).unwrap() + 1;
    let said = fleet.wharf(["up", "-y", "-f", &fleet.file("six", &content)]);
    assert_eq!(said.code, 1, "{said:?}");
    for wanted in [&format!("compose.yaml:{line}:"), "fd5a:7c1e:9b03::db", "fd5a:7c1e:9b02::/64"] {
        assert!(said.stderr.contains(wanted), "{wanted}: {said:?}");
    }
}

fn ipv6_has_names_fixed_addresses_and_inner_networks(fleet: &Fleet, members: &BTreeMap<String, Member>) {
    let (first, _) = task(members, "six-peer", 1);
    let (third, member) = task(members, "six-peer", 3);
    let there = member.at["six_default"][2].trim_matches(['[', ']']).to_owned();

    let own = inside(fleet, 3, third, "ip -6 addr show scope global").unwrap();
    assert!(own.contains(&format!("{there}/64")), "{own}");
    inside(fleet, 1, first, &format!("ping -6 -c 3 -W 3 {there}")).unwrap();
    let said = inside(fleet, 1, first, "nslookup -type=aaaa peer").unwrap();
    let all = members.iter().filter(|(task, _)| task.starts_with("six-peer"));
    for (_, member) in all {
        let at = member.at["six_default"][2].trim_matches(['[', ']']);
        assert!(said.lines().any(|line| line == format!("Address: {at}")), "{at}: {said}");
    }
    let said = inside(fleet, 1, first, &format!("nslookup {there}")).unwrap();
    let reverse: String =
        there.parse::<Ipv6Addr>().unwrap().octets().iter().rev().fold(String::new(), |mut name, octet| {
            write!(name, "{:x}.{:x}.", octet & 15, octet >> 4).unwrap();
            name
        });
    assert!(said.contains(&format!("{reverse}ip6.arpa\tname = {third}")), "{said}");

    let db = members.iter().find(|(task, _)| task.starts_with("six-db")).unwrap();
    assert!(db.1.at["six_default"].iter().any(|at| at == "[fd5a:7c1e:9b02::db]"), "{db:?}");
    let own = inside(fleet, db.1.node, db.0, "ip -6 addr show scope global").unwrap();
    assert!(own.contains("fd5a:7c1e:9b02::db/64"), "{own}");

    // What is outside: a machine on the segment, which the node's other containers reach.
    for node in 1..=3 {
        let address = format!("ip -6 addr add fd99::{node}/64 dev eth0 nodad");
        fleet.node(node).sh(&address).unwrap();
    }
    let outside = |node: u8| {
        [format!("-4 -c 1 -W 2 {}", fleet.node(node).address()), format!("-6 -c 1 -W 2 fd99::{node}")]
    };
    let (shut, (peer, _)) = (task(members, "six-shut", 1), task(members, "six-peer", 1));
    for ping in outside(2) {
        wait_until(SOON, "there is a way out", || inside(fleet, 1, peer, &format!("ping {ping}")));
        let said = inside(fleet, 1, shut.0, &format!("ping {ping}"));
        assert!(said.is_err(), "{said:?}");
    }
}

fn routed_networks_have_blocks_and_keep_addresses(fleet: &Fleet, members: &BTreeMap<String, Member>) {
    let network = fleet.json(["network", "inspect", "fast_default"]);
    assert_eq!(text(&network["backend"]), "routed");
    let blocks: BTreeSet<_> =
        items(&network["on"]).iter().flat_map(|on| items(&on["blocks"])).map(text).collect();
    assert_eq!(blocks.len(), 3, "{network:#}");
    let shown = fleet.ok(["network", "inspect", "fast_default"]);
    assert!(blocks.iter().all(|block| shown.contains(block)), "{shown}");

    for (from, to) in [(1, 2), (2, 1), (3, 1)] {
        let (peer, member) = task(members, "fast-peer", from);
        let on = format!("n{to}");
        let is_there =
            |member: &&Value| text(&member["task"]).contains("-web-") && text(&member["node"]) == on;
        let web = items(&network["members"]).iter().find(is_there).unwrap();
        let seen = inside(
            fleet,
            from,
            peer,
            &format!("timeout 9 wget -qO- http://{}:8080/client", text(&web["address"])),
        )
        .unwrap();
        assert_eq!(seen.trim(), member.at["fast_default"][1], "from node {from} to node {to}");
    }
    wait_until(SOON, "the published port of a routed network answers by every node", || {
        for node in 1..=3 {
            fleet.http(&format!("http://{}:8081/client", fleet.node(node).address()))?;
        }
        Ok::<_, anyhow::Error>(())
    });
}

fn encrypted_networks_carry_large_answers(fleet: &Fleet, members: &BTreeMap<String, Member>) {
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        let (peer, _) = task(members, "secret-peer", from);
        let at = &task(members, "secret-peer", to).1.at["secret_default"][1];
        let size =
            inside(fleet, from, peer, &format!("timeout 20 wget -qO- http://{at}/big | wc -c")).unwrap();
        assert_eq!(size.trim(), "100000", "from node {from} to node {to}");
        // No packet is too large for the path, and none needs to be cut.
        let mtu: u32 =
            inside(fleet, from, peer, "cat /sys/class/net/eth0/mtu").unwrap().trim().parse().unwrap();
        assert!((1280..1450).contains(&mtu), "{mtu}");
        inside(fleet, from, peer, &format!("ping -c 1 -W 5 -s {} {at}", mtu - 28)).unwrap();
    }
}

fn a_network_changes_its_backend_under_load(fleet: &Fleet) {
    let file = |backend| fleet.file("moving", &MOVING.replace("{PEER}", PEER).replace("BACKEND", backend));
    fleet.ok(["up", "-y", "-f", &file("vxlan")]);
    let members = all_reach_whom_they_share_a_network_with(fleet, &["moving", "secret"]);
    let before: Vec<_> = members.keys().cloned().collect();
    let network = fleet.json(["network", "inspect", "moving_default"]);
    let bridge = text(&network["bridge"]).to_owned();
    let tunnel = bridge.replace("wh", "wv");
    let subnet = text(&network["subnet"]).to_owned();
    let (peer, _) = task(&members, "moving-peer", 1);

    for (old, new) in [("vxlan", "routed"), ("routed", "wireguard"), ("wireguard", "vxlan")] {
        let file = file(new);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let names = scope.spawn(|| by_name(fleet, peer, &done));
            let ports = scope.spawn(|| by_port(fleet, &done));
            let said = fleet.wharf(["up", "-y", "-f", &file]);
            done.store(true, Ordering::Relaxed);
            let (names, ports) = (names.join().unwrap().unwrap(), ports.join().unwrap());
            println!(
                "{old} -> {new}: {} of {} questions by name failed, {} of {} by published port, the slowest after {:.1} s",
                names.1,
                names.0,
                ports.1,
                ports.0,
                ports.2.as_secs_f64()
            );
            assert!(said.is_success(), "{said:?}");
            let plan = format!("{}{}", said.stdout, said.stderr);
            let line = plan.lines().find(|line| line.contains("network  default"));
            let line = line.unwrap_or_else(|| panic!("{plan}"));
            assert!(
                line.contains(&format!("backend {old} -> {new} (in place: its 3 tasks keep running")),
                "{line}"
            );
            assert!(names.0 > names.1 && ports.0 > ports.1, "it is reachable meanwhile");
        });
        // The same tasks with the same addresses, all reached, and apart from those of the other app.
        let after = all_reach_whom_they_share_a_network_with(fleet, &["moving", "secret"]);
        assert_eq!(after.keys().cloned().collect::<Vec<_>>(), before);
        for (task, member) in &after {
            assert_eq!(member.at, members[task].at);
        }
        wait_until(SOON, "only the new backend is on the nodes", || {
            let network = fleet.try_json(["network", "inspect", "moving_default"])?;
            ensure!(text(&network["backend"]) == new, "{network:#}");
            ensure!(items(&network["on"]).iter().all(|on| on["acknowledged"] == true), "{network:#}");
            for node in 1..=3 {
                let has = |line: &str| {
                    fleet.node(node).sh(&format!("{line}; true")).map(|said| !said.trim().is_empty())
                };
                let (tunnels, routes, rules) = (
                    has(&format!("ip -br link | grep -w {tunnel}"))?,
                    has(&format!("ip route show root {subnet} proto 87"))?,
                    has(&format!(
                        "nft list table inet wharf | grep -w {bridge}; iptables -S | grep WHARF-ROUTED | grep -w {bridge}"
                    ))?,
                );
                let encrypted =
                    has(&format!("ip -d link show {tunnel} | grep -E 'dstport 4792|local fd77'"))?;
                let found = (tunnels, encrypted, routes, rules);
                let wanted = match new {
                    "routed" => (false, false, true, true),
                    "wireguard" => (true, true, false, false),
                    _ => (true, false, false, false),
                };
                if found != wanted {
                    bail!("on node {node}: tunnel, encrypted, routes, rules: {found:?}, not {wanted:?}");
                }
            }
            Ok(())
        });
    }
}

/// Asks for a service by name from a task on node 1 until `done`: how often, and how often in vain within a second.
fn by_name(fleet: &Fleet, peer: &str, done: &AtomicBool) -> Result<(usize, usize)> {
    let line = "for i in $(seq 10); do timeout 1 wget -qO- http://peer/ 2>/dev/null || echo failed; done";
    let (mut asked, mut failed) = (0, 0);
    while !done.load(Ordering::Relaxed) || asked == 0 {
        let said = inside(fleet, 1, peer, line)?;
        asked += 10;
        failed += said.lines().filter(|line| *line == "failed").count();
    }
    Ok((asked, failed))
}

/// Asks the published port of all nodes until `done`: how often, how often in vain, and the longest answer.
fn by_port(fleet: &Fleet, done: &AtomicBool) -> (usize, usize, Duration) {
    let (mut asked, mut failed, mut longest) = (0, 0, Duration::ZERO);
    while !done.load(Ordering::Relaxed) {
        for node in 1..=3 {
            let begin = Instant::now();
            let answer = fleet.http(&format!("http://{}:8082/", fleet.node(node).address()));
            longest = longest.max(begin.elapsed());
            asked += 1;
            failed += usize::from(answer.is_err());
        }
    }
    (asked, failed, longest)
}
