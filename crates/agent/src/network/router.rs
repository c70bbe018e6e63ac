//! Makes the routes of routed networks on a Linux router: the built-in route program.
//!
//! - Only routes with our number are looked at and changed. After a call the router has those that are wanted and no other of them.
//! - What is right is not touched; one that leads elsewhere is replaced in one step.
//! - The router needs nothing but `ip`, here or behind another command such as `ssh`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    net::IpAddr,
    process::{Command, Output, Stdio},
};

use ipnet::Ipv4Net;
use serde::Deserialize;
use wharf_model::{RouteSync, RouteSynced};

/// The number of the routes on a router, next to that of a node's own: a node may be the router.
const PROTOCOL: &str = "88";

/// What `ip -json route` says of one.
#[derive(Debug, Deserialize)]
struct Shown {
    dst: String,
    gateway: Option<IpAddr>,
    via: Option<Via>,
}

/// A next hop of the other family.
#[derive(Debug, Deserialize)]
struct Via {
    host: IpAddr,
}

type Routes = BTreeMap<Ipv4Net, BTreeSet<IpAddr>>;

/// Makes the main table of the machine that `via` leads to (this one, if it is empty) have these routes and no other of ours.
///
/// # Errors
/// Why its table could not be read, in words for people. Routes that it refuses are in the answer.
pub fn sync(via: &[String], wanted: &RouteSync) -> Result<RouteSynced, String> {
    let there = read(via)?;
    let batch = plan(wanted, &there);
    let mut refused = None;
    if !batch.is_empty() {
        let output = run(via, &["-force", "-batch", "-"], &batch).map_err(|error| cannot(via, &error))?;
        let said = String::from_utf8_lossy(&output.stderr);
        refused = said.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    }
    let there = if batch.is_empty() { there } else { read(via)? };
    let missing = |route: &&wharf_model::WantedRoute| {
        !there.get(&route.destination).is_some_and(|hops| hops.contains(&route.next_hop))
    };
    let missing: Vec<_> = wanted.routes.iter().filter(missing).collect();
    let made = wanted.routes.len() - missing.len();
    let error = missing.first().map(|first| {
        let why = refused.map(|why| format!(": {why}")).unwrap_or_default();
        format!(
            "the router did not take {} of {} routes, such as {} by way of {} ({}){why}",
            missing.len(),
            wanted.routes.len(),
            first.destination,
            first.next_hop,
            first.node
        )
    });
    Ok(RouteSynced { routes_programmed: u32::try_from(made).unwrap_or(u32::MAX), error })
}

/// What `ip -batch` has to do: removals first.
fn plan(wanted: &RouteSync, there: &Routes) -> String {
    let right: BTreeMap<_, _> =
        wanted.routes.iter().map(|route| (route.destination, route.next_hop)).collect();
    let mut batch = String::new();
    for (to, hops) in there {
        let replaced = right.contains_key(to) && hops.len() == 1;
        for hop in hops.iter().filter(|hop| right.get(to) != Some(hop) && !replaced) {
            batch += &format!("route del {to} via {}{hop} proto {PROTOCOL}\n", family(*hop));
        }
    }
    for (to, hop) in right {
        if !there.get(&to).is_some_and(|hops| hops.contains(&hop)) {
            batch += &format!("route replace {to} via {}{hop} proto {PROTOCOL}\n", family(hop));
        }
    }
    batch
}

const fn family(hop: IpAddr) -> &'static str {
    match hop {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => "inet6 ",
    }
}

fn read(via: &[String]) -> Result<Routes, String> {
    let arguments = ["-json", "-4", "route", "show", "table", "main", "proto", PROTOCOL];
    let output = run(via, &arguments, "").map_err(|error| cannot(via, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cannot read the router's routes: {}", said.trim()));
    }
    parse(&output.stdout).map_err(|error| format!("cannot read what the router's `ip` says: {error}"))
}

fn parse(text: &[u8]) -> Result<Routes, String> {
    if text.trim_ascii().is_empty() {
        return Ok(Routes::new());
    }
    let shown: Vec<Shown> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let mut routes = Routes::new();
    for route in shown {
        let to = match route.dst.as_str() {
            "default" => Ipv4Net::default(),
            single if !single.contains('/') => {
                Ipv4Net::from(single.parse::<std::net::Ipv4Addr>().map_err(|error| error.to_string())?)
            }
            range => range.parse().map_err(|error: ipnet::AddrParseError| error.to_string())?,
        };
        let hop = route.gateway.or(route.via.map(|via| via.host));
        // One without a next hop leads nowhere we want: told by an address that nobody has.
        routes.entry(to).or_default().insert(hop.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)));
    }
    Ok(routes)
}

fn cannot(via: &[String], error: &io::Error) -> String {
    let program = via.first().map_or("ip", String::as_str);
    format!("cannot run `{program}`: {error}")
}

fn run(via: &[String], arguments: &[&str], input: &str) -> io::Result<Output> {
    let words: Vec<&str> =
        via.iter().map(String::as_str).chain(["ip"]).chain(arguments.iter().copied()).collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(to: &str, hop: &str) -> wharf_model::WantedRoute {
        wharf_model::WantedRoute {
            destination: to.parse().unwrap(),
            next_hop: hop.parse().unwrap(),
            node: "n1".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_right_is_left_what_is_wrong_is_replaced_and_what_is_stale_goes() {
        let there = parse(
            br#"[{"dst":"10.192.0.0/26","gateway":"192.0.2.1","dev":"eth0","flags":[]},
                {"dst":"10.192.0.64/26","gateway":"192.0.2.1","dev":"eth0","flags":[]},
                {"dst":"10.192.0.7","via":{"family":"inet6","host":"fd00::1"},"dev":"eth0","flags":[]}]"#,
        )
        .unwrap();
        let routes = vec![route("10.192.0.0/26", "192.0.2.1"), route("10.192.0.64/26", "192.0.2.2")];
        let wanted = RouteSync { routes };
        let batch = plan(&wanted, &there);
        let lines: Vec<_> = batch.lines().collect();
        assert_eq!(
            lines,
            [
                "route del 10.192.0.7/32 via inet6 fd00::1 proto 88",
                "route replace 10.192.0.64/26 via 192.0.2.2 proto 88"
            ]
        );
        assert_eq!(plan(&wanted, &Routes::new()).lines().count(), 2);
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let error = sync(&["/nowhere/ssh".to_owned()], &RouteSync::default()).unwrap_err();
        assert!(error.starts_with("cannot run `/nowhere/ssh`"), "{error}");
    }
}
