//! What others do to the kernel's state is heard of and undone.

use super::{
    routed::{Routed, routed_pair},
    *,
};

fn keep_mending(node: &Node) {
    node.with(|network, tasks| async move {
        let stop = tasks.token();
        drop(tasks.spawn("networks", async move { network.run(stop).await }));
    });
}

#[expect(
    clippy::print_stderr,
    reason = "figures for whoever runs the tests; machines are too different to assert more"
)]
/// Does each damage, and waits until `state`, what there is to see of the node, is as before. Answers how long all of it took.
fn mends(node: &Node, damages: &[(&str, &str)], state: &dyn Fn() -> String) -> Duration {
    let before = state();
    let mut times = Vec::new();
    for (program, arguments) in damages {
        node.namespace.does(program, arguments);
        let begun = Instant::now();
        eventually(&before, state);
        times.push((begun.elapsed(), format!("{program} {arguments}")));
    }
    for (time, damage) in &times {
        eprintln!("mended after {:>7.1} ms: {damage}", time.as_secs_f64() * 1000.0);
    }
    times.iter().map(|(time, _)| *time).sum()
}

/// With nothing but the comparison every five seconds each would take half of that.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What a program shows, without the devices' numbers, which change when one is made again.
fn shown(node: &Node, program: &str, arguments: &str) -> String {
    let output = node.namespace.command(program, arguments);
    let mut lines: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| match line.split_once(": ") {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => rest.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    // Entries are in no order.
    lines.sort();
    lines.join("\n")
}

#[test]
fn damage_to_a_vxlan_network_is_heard_of_and_mended() {
    if !can_run() {
        return;
    }
    let pair = pair();
    keep_mending(&pair.one);
    let mac = "02:42:0a:c0:00:14";
    let state = || {
        let of = |program: &str, arguments: &str| shown(&pair.one, program, arguments);
        let own = |line: &&str| line.contains("dst") || line.contains("static");
        let entries = of("bridge", "fdb show dev wv64");
        let entries: Vec<_> = entries.lines().filter(own).collect();
        let links = ["wh64", "wv64"].map(|name| {
            // Without what a link that comes up does by itself.
            let link = of("ip", &format!("-o link show {name}"));
            link.split(" state ").next().unwrap_or_default().replace("NO-CARRIER,", "")
        });
        let master = of("ip", "-o link show wv64").contains("master wh64");
        let addresses = of("ip", "-o -4 addr show dev wh64");
        let neighbours = of("ip", "neigh show dev wv64 nud permanent");
        format!("{entries:?} {links:?} {master} {addresses} {neighbours}")
    };
    let forward = format!("fdb del {mac} dev wv64 self");
    let switch = format!("fdb del {mac} dev wv64 master");
    let wrong = format!("fdb replace {mac} dev wv64 self dst 192.0.2.99");
    let damages = [
        ("bridge", forward.as_str()),
        ("bridge", switch.as_str()),
        ("bridge", wrong.as_str()),
        ("bridge", "fdb add 02:00:00:00:00:01 dev wv64 self dst 192.0.2.99"),
        ("ip", "neigh del 10.192.0.20 dev wv64"),
        ("ip", "neigh add 10.192.0.99 lladdr 02:00:00:00:00:01 dev wv64 nud permanent"),
        ("ip", "addr del 10.192.0.1/20 dev wh64"),
        ("ip", "addr add 10.9.9.9/24 dev wh64"),
        ("ip", "link set wv64 down"),
        ("ip", "link set wv64 nomaster"),
        ("ip", "link set wv64 mtu 1200"),
        ("ip", "link delete wv64"),
        ("ip", "link set wh64 down"),
    ];
    let took = mends(&pair.one, &damages, &state);
    assert!(took < AT_ONCE * 13, "{took:?}");
    eventually(&says("db 10.192.0.10"), || pair.web.namespace.call(at(20), PORT).ok());
    // The uplink's largest packet, and back: devices and containers follow.
    for (uplink, inside) in [("1400", "mtu 1350"), ("1500", "mtu 1450")] {
        pair.one.namespace.ip(&format!("link set eth0 mtu {uplink}"));
        eventually(&Some(inside), || {
            pair.web.namespace.ip("-o link show eth0").contains(inside).then_some(inside)
        });
    }
    // A bridge that is removed takes the containers off; Docker would have to plug them in again.
    pair.one.namespace.ip("link delete wh64");
    eventually(&true, || shown(&pair.one, "ip", "-o link show wv64").contains("master wh64"));
}

#[test]
fn damage_to_a_routed_network_is_heard_of_and_mended() {
    if !can_run() {
        return;
    }
    let it: Routed = routed_pair();
    drop(it.one.repair());
    keep_mending(&it.one);
    let state = || {
        let of = |program: &str, arguments: &str| shown(&it.one, program, arguments);
        [
            of("ip", "route show proto 87"),
            of(
                "sysctl",
                "net.ipv4.conf.wh64.proxy_arp net.ipv4.neigh.wh64.proxy_delay net.ipv4.conf.eth0.forwarding",
            ),
            of("nft", "list table inet wharf"),
            of("iptables", "-w -S WHARF-ROUTED"),
            of("iptables", "-w -S DOCKER-USER"),
            of("ip", "-o link show wh64").split(" state ").next().unwrap_or_default().to_owned(),
        ]
        .join("\n")
    };
    let damages = [
        ("ip", "route del 10.100.0.64/26"),
        ("ip", "route replace 10.100.0.64/26 via 192.0.2.77 proto 87"),
        ("ip", "route add 10.100.0.128/26 via 192.0.2.2 proto 87"),
        ("ip", "route flush proto 87"),
        ("sysctl", "-q -w net.ipv4.conf.wh64.proxy_arp=0"),
        ("sysctl", "-q -w net.ipv4.conf.eth0.forwarding=0"),
        ("ip", "link set wh64 mtu 1300"),
    ];
    let took = mends(&it.one, &damages, &state);
    assert!(took < AT_ONCE * 7, "{took:?}");
    // Rules are looked at less often, and what the kernel does not tell of waits for the comparison.
    let damages = [
        ("nft", "delete table inet wharf"),
        ("nft", "flush chain inet wharf between"),
        ("iptables", "-w -F WHARF-ROUTED"),
        ("iptables", "-w -D DOCKER-USER -j WHARF-ROUTED"),
        ("sysctl", "-q -w net.ipv4.neigh.wh64.proxy_delay=80"),
    ];
    mends(&it.one, &damages, &state);
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(super::routed::on(100, 74), PORT).ok());
    it.one.namespace.does("nft", "flush ruleset");
    eventually(&true, || shown(&it.one, "nft", "list table inet wharf").contains("10.100.0.0/20"));
    // An uplink that goes down takes the routes with it.
    it.one.namespace.ip("link set eth0 down");
    it.one.namespace.ip("link set eth0 up");
    eventually(&says("db 10.100.0.10"), || it.web.namespace.call(super::routed::on(100, 74), PORT).ok());
}
