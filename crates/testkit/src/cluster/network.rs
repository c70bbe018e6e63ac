//! The switch that the nodes are plugged into, and the faults that it can make.
//!
//! - Everything is in network namespaces of its own; the machine's own network is touched only by
//!   `attach_host`, which adds one interface.
//! - Faults are made in the switch, never in a node: no rule of a node is added or hidden by them.
//! - Cutting the same pair twice, or healing what is whole, is harmless.

use anyhow::{Context, Result, ensure};

use super::process::{feed, run};
use super::registry::Record;

/// The switch's own address, where names are resolved (to nothing).
pub(crate) const SWITCH: u8 = 1;
/// The address of the client's place on the switch.
pub(crate) const CLIENT: u8 = 2;
/// The machine's own address on the switch, when it is attached.
const HOST: u8 = 3;
/// Node I has the address 10+I.
const NODE_BASE: u8 = 10;

pub(crate) fn node_host(index: u8) -> u8 {
    NODE_BASE + index
}

/// The name of a node's port on the switch.
fn port(index: u8) -> String {
    format!("p{index}")
}

/// Runs `ip` for many commands at once, in a network namespace.
fn ip(namespace: &str, commands: &str) -> Result<()> {
    feed("ip", ["-n", namespace, "-batch", "-"], commands).map(drop)
}

fn in_switch(record: &Record, words: &[&str]) -> Result<String> {
    let namespace = format!("--net={}", record.namespace_path("switch").display());
    run("nsenter", [namespace.as_str(), "--"].iter().chain(words))
}

fn nft(record: &Record, rules: &str) -> Result<()> {
    let namespace = format!("--net={}", record.namespace_path("switch").display());
    feed("nsenter", [namespace.as_str(), "nft", "-f", "-"], rules).map(drop)
}

pub(crate) fn switch_up(record: &Record) -> Result<()> {
    let (switch, client) = (record.namespace("switch"), record.namespace("client"));
    let batch = format!(
        "netns add {switch}\nnetns add {client}\n\
         link add pc netns {switch} type veth peer name eth0 netns {client}\n"
    );
    feed("ip", ["-batch", "-"], &batch)?;
    let address = record.address(SWITCH);
    ip(
        &switch,
        &format!(
            "link set lo up\nlink add br0 type bridge\naddr add {address}/24 dev br0\nlink set br0 up\n\
             link set pc master br0 up\n"
        ),
    )?;
    let own = record.address(CLIENT);
    ip(
        &client,
        &format!(
            "link set lo up\naddr add {own}/24 dev eth0\nlink set eth0 up\nroute add default via {address}\n"
        ),
    )?;
    // Switched frames must not run through iptables. The switch routes to nowhere, so that an address
    // outside is answered with "unreachable" at once instead of silence.
    in_switch(
        record,
        &[
            "sh",
            "-c",
            "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $f ] && echo 0 >$f; done; echo 1 >/proc/sys/net/ipv4/ip_forward",
        ],
    )?;
    nft(
        record,
        "table bridge testbed {\n\
         chain partition { type filter hook forward priority 0; policy accept; }\n\
         chain loss { type filter hook forward priority 10; policy accept; }\n}\n",
    )
}

/// Gives the machine's own network an interface on the switch.
pub(crate) fn attach_host(record: &Record) -> Result<()> {
    let (link, address) = (record.host_link(), record.address(HOST));
    let switch = record.namespace("switch");
    let batch = format!(
        "link add {link} type veth peer name host netns {switch}\naddr add {address}/24 dev {link}\nlink set {link} up\n"
    );
    feed("ip", ["-batch", "-"], &batch)?;
    ip(&switch, "link set host master br0 up\n")
}

/// Plugs a node in: a fresh network namespace with one interface, as after a boot.
pub(crate) fn plug(record: &Record, index: u8) -> Result<()> {
    let (switch, node) = (record.namespace("switch"), record.namespace(&format!("n{index}")));
    let port = port(index);
    let subnet = record.subnet;
    feed(
        "ip",
        ["-batch", "-"],
        &format!(
            "netns add {node}\n\
             link add {port} netns {switch} type veth peer name eth0 address 02:77:00:{subnet:02x}:00:{index:02x} netns {node}\n"
        ),
    )?;
    ip(&switch, &format!("link set {port} master br0 up\n"))?;
    let (own, gateway) = (record.address(node_host(index)), record.address(SWITCH));
    ip(
        &node,
        &format!(
            "link set lo up\naddr add {own}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        ),
    )
}

/// Takes a node's interface and network namespace away, if they are there.
pub(crate) fn unplug(record: &Record, index: u8) -> Result<()> {
    let member = format!("n{index}");
    if port_state(record, index)? != Port::Absent {
        in_switch(record, &["ip", "link", "del", &port(index)])?;
    }
    if record.namespace_path(&member).exists() {
        run("ip", ["netns", "del", &record.namespace(&member)])?;
    }
    Ok(())
}

/// What a node's place on the switch looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// Not plugged in.
    Absent,
    /// Plugged in and switched off.
    Down,
    /// Plugged in and working.
    Up,
}

pub(crate) fn port_state(record: &Record, index: u8) -> Result<Port> {
    let text = in_switch(record, &["ip", "-json", "link", "show"])?;
    let links: Vec<serde_json::Value> = serde_json::from_str(&text).context("reading `ip -json link`")?;
    let name = port(index);
    let Some(link) = links.iter().find(|link| link["ifname"] == name.as_str()) else {
        return Ok(Port::Absent);
    };
    let is_up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    Ok(if is_up { Port::Up } else { Port::Down })
}

pub(crate) fn isolate(record: &Record, index: u8) -> Result<()> {
    in_switch(record, &["ip", "link", "set", &port(index), "down"]).map(drop)
}

pub(crate) fn rejoin(record: &Record, index: u8) -> Result<()> {
    in_switch(record, &["ip", "link", "set", &port(index), "up"]).map(drop)
}

/// Drops what one node sends to another.
pub(crate) fn cut(record: &Record, from: u8, to: u8) -> Result<()> {
    let (from, to) = (port(from), port(to));
    nft(record, &format!("add rule bridge testbed partition iifname {from} oifname {to} drop\n"))
}

/// Undoes every cut and isolation.
pub(crate) fn heal(record: &Record) -> Result<()> {
    nft(record, "flush chain bridge testbed partition\n")?;
    for index in 1..=record.nodes {
        if port_state(record, index)? == Port::Down {
            rejoin(record, index)?;
        }
    }
    Ok(())
}

/// Sets how much of what each node sends and receives is lost, in place of what was set before.
pub(crate) fn lose(record: &Record, shares: &[(u8, f64)]) -> Result<()> {
    let mut rules = String::from("flush chain bridge testbed loss\n");
    for &(index, share) in shares {
        ensure!((0.0..=1.0).contains(&share), "a share of packets is from 0 to 1, not {share}");
        let port = port(index);
        // "Below N of M" is no rule when it is always true.
        let chance = if share < 1.0 {
            format!("numgen random mod 10000 < {:.0}", share * 10_000.0)
        } else {
            String::new()
        };
        for direction in ["iifname", "oifname"] {
            rules += &format!("add rule bridge testbed loss {direction} {port} {chance} drop\n");
        }
    }
    nft(record, &rules)
}

/// Limits what a node sends and receives to `rate` (as `tc` writes it: `50mbit`), or lifts the limit.
pub(crate) fn limit(record: &Record, index: u8, rate: Option<&str>) -> Result<()> {
    let ends = [
        (record.namespace("switch"), port(index)),
        (record.namespace(&format!("n{index}")), "eth0".to_owned()),
    ];
    for (namespace, device) in ends {
        let on = ["-n", &namespace, "qdisc"];
        // Without a limit there is nothing to delete, which is as wanted.
        drop(run("tc", on.iter().chain(&["del", "dev", &device, "root"])));
        if let Some(rate) = rate {
            let shape =
                ["add", "dev", &device, "root", "tbf", "rate", rate, "burst", "64k", "latency", "50ms"];
            run("tc", on.iter().chain(&shape))?;
        }
    }
    Ok(())
}
