//! The rules that routed networks and those on the segment need, and who takes care of the rules of others.
//!
//! - Ours are a table of nftables that nobody else touches, and one chain of iptables, because a packet that Docker's rules would drop
//!   can only be accepted among Docker's rules.
//! - What an address of a routed network sends is taken only from where that address is, and what is not from the network does not
//!   enter it: two networks cannot reach each other, whatever the default policy of the node is.
//! - The node's device on a segment is the node's: it forwards nothing between it and other networks, which would otherwise reach the
//!   segment's containers on the same node, in the node's name.
//! - They are compared when any rule of the node has changed, and written again if they are not as written.
//! - Docker's rules are Docker's: what is missing of them is told, not mended.

use std::{collections::BTreeMap, fmt::Write};

use wharf_model::Backend;

use super::{
    nft::{self, Kept, NftError, Place},
    plan::{WantedNetwork, bridge_name},
    segment::shim_name,
};

const TABLE: &str = "inet wharf";
/// Its chain for what enters a network from elsewhere.
const ANSWERS: &str = "answers";
/// Our chain of iptables.
const CHAIN: &str = "WHARF-ROUTED";
/// Where Docker lets others have their say first.
const DOCKER: &str = "DOCKER-USER";
const IPTABLES: [&str; 3] = ["iptables", "/usr/sbin/iptables", "/sbin/iptables"];
const FORWARD: &str = "FORWARD";
const SAVE: [&str; 3] = ["iptables-save", "/usr/sbin/iptables-save", "/sbin/iptables-save"];
const RESTORE: [&str; 3] = ["iptables-restore", "/usr/sbin/iptables-restore", "/sbin/iptables-restore"];

/// The rules as they should be: of nftables, and of our chain of iptables. None if no network needs any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) nft: String,
    pub(super) iptables: String,
}

/// The rules for these networks.
pub(super) fn rules(networks: &BTreeMap<u32, WantedNetwork>) -> Option<Rules> {
    let (mut sources, mut between) = (String::new(), String::new());
    let (mut out, mut iptables) = (String::new(), String::new());
    for (vni, network) in networks.iter().filter(|(_, network)| network.backend == Backend::Routed) {
        let (bridge, subnet) = (bridge_name(*vni), network.subnet());
        // Writing to a string does not fail.
        let _ = write!(sources, "\n    ip saddr {subnet} fib saddr . iif oif missing drop");
        let enters = format!("oifname \"{bridge}\" iifname != \"{bridge}\" ip saddr != {subnet}");
        let _ = write!(between, "\n    {enters} goto {ANSWERS}");
        if network.internal {
            let leaves = format!("iifname \"{bridge}\" oifname != \"{bridge}\" ip daddr != {subnet}");
            let _ = write!(between, "\n    {leaves} drop");
        } else {
            let _ = write!(
                out,
                "\n    oifname != \"{bridge}\" ip saddr {subnet} ip daddr != {subnet} masquerade"
            );
        }
        // Keeps the address that it has, so that Docker's rule, which comes later, does not hide it from the other nodes.
        let _ = write!(
            out,
            "\n    oifname != \"{bridge}\" ip saddr {subnet} ip daddr {subnet} snat ip to ip saddr"
        );
        let within = format!("-A {CHAIN} -s {subnet} -d {subnet}");
        let _ = write!(
            iptables,
            "{within} -i {bridge} ! -o {bridge} -j ACCEPT\n{within} ! -i {bridge} -o {bridge} -j ACCEPT\n"
        );
    }
    for (vni, _) in networks.iter().filter(|(_, network)| network.backend == Backend::Macvlan) {
        let shim = shim_name(*vni);
        let _ = write!(between, "\n    oifname \"{shim}\" goto {ANSWERS}");
        let _ = write!(between, "\n    iifname \"{shim}\" ct state established,related accept");
        let _ = write!(between, "\n    iifname \"{shim}\" drop");
    }
    let chain = |name: &str, hook: &str, rules: String| {
        format!("  chain {name} {{\n    type {hook}; policy accept;{rules}\n  }}\n")
    };
    if between.is_empty() {
        return None;
    }
    // Answers to what containers asked, and what a published port leads to.
    let answers = format!(
        "  chain {ANSWERS} {{\n    ct state established,related accept\n    ct status dnat accept\n    drop\n  }}\n"
    );
    // Each a little before the usual place of its kind: what is dropped here, nobody else looks at. Every packet of the node comes by: what
    // most of them are not is asked first.
    let nft = answers
        + &chain("sources", "filter hook prerouting priority -305", sources)
        + &chain("between", "filter hook forward priority -5", between)
        + &chain("out", "nat hook postrouting priority 95", out);
    Some(Rules { nft, iptables })
}

/// The rules of this node.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    table: Kept,
    /// What our chain was last written as, and how iptables showed it.
    chain: Option<(String, String)>,
    /// When nothing was wrong: the generation of the node's rules, and what was wanted.
    settled: Option<(u32, Option<Rules>)>,
    /// Whether iptables shows what nftables has: then the generation tells of its changes as well.
    translated: Option<bool>,
    /// Whether Docker's own chains have been there.
    docker_was_there: bool,
}

/// What looking after the rules came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: usize,
    pub(super) problems: Vec<String>,
}

impl Firewall {
    /// Makes the node's rules so.
    pub(super) fn ensure(&mut self, wanted: Option<Rules>) -> Outcome {
        let mut outcome = Outcome::default();
        let generation = nft::generation().ok();
        if let Some((settled, rules)) = &self.settled
            && generation == Some(*settled)
            && *rules == wanted
            && (wanted.is_none() || self.translated == Some(true))
        {
            return outcome;
        }
        let is_needed = wanted.is_some();
        match self.table.ensure(Place::Here, TABLE, wanted.as_ref().map(|rules| rules.nft.as_str())) {
            Ok(changed) => outcome.changes += usize::from(changed),
            // A node without such networks needs no `nft`.
            Err(NftError::Missing) if !is_needed => {}
            Err(error) => outcome.problems.push(format!(
                "routed networks and those on the segment have no rules on this node: {}",
                wharf_process::errors::chain(&error)
            )),
        }
        let chain = wanted.as_ref().map_or("", |rules| rules.iptables.as_str());
        let ensured = Saved::read().and_then(|saved| {
            if self.translated.is_none() {
                let version = nft::run_program(&IPTABLES, &["--version"], "")?;
                self.translated = Some(version.contains("nf_tables"));
            }
            self.look_for_docker(&saved, &mut outcome);
            self.ensure_chain(chain, &saved)
        });
        match ensured {
            Ok(changed) => outcome.changes += usize::from(changed),
            Err(NftError::Missing) => {}
            Err(error) if is_needed => outcome.problems.push(format!(
                "Docker's rules may drop the packets of routed networks: {}",
                wharf_process::errors::chain(&error)
            )),
            Err(_) => {}
        }
        self.settled = match (outcome.problems.is_empty(), nft::generation()) {
            (true, Ok(generation)) => Some((generation, wanted)),
            _ => None,
        };
        outcome
    }

    /// Our chain, and the jump to it from where Docker wants it, else from the start.
    fn ensure_chain(&mut self, rules: &str, saved: &Saved) -> Result<bool, NftError> {
        // One jump, from the first place there is.
        let place = [DOCKER, FORWARD].into_iter().find(|hook| saved.filter.contains_key(*hook));
        let wanted = |hook: &str| usize::from(!rules.is_empty() && hook == place.unwrap_or(FORWARD));
        let jumps = [DOCKER, FORWARD].map(|hook| (hook, saved.jumps(hook)));
        let there = saved.filter.get(CHAIN);
        if rules.is_empty() {
            self.chain = None;
            if there.is_none() {
                return Ok(false);
            }
        } else if jumps.iter().all(|(hook, count)| *count == wanted(hook))
            && self.chain.as_ref().is_some_and(|(wrote, shown)| wrote == rules && Some(shown) == there)
        {
            return Ok(false);
        }
        let mut script = format!("*filter\n:{CHAIN} - [0:0]\n{rules}");
        for (hook, count) in jumps {
            for _ in 0..count {
                let _ = writeln!(script, "-D {hook} -j {CHAIN}");
            }
            for _ in 0..wanted(hook) {
                let _ = writeln!(script, "-I {hook} 1 -j {CHAIN}");
            }
        }
        if rules.is_empty() {
            let _ = writeln!(script, "-X {CHAIN}");
        }
        script += "COMMIT\n";
        nft::run_program(&RESTORE, &["-w", "--noflush"], &script)?;
        if !rules.is_empty() {
            let shown = Saved::read()?.filter.remove(CHAIN).unwrap_or_default();
            self.chain = Some((rules.to_owned(), shown));
        }
        Ok(true)
    }

    /// Docker writes its rules when it starts, and never looks again.
    fn look_for_docker(&mut self, saved: &Saved, outcome: &mut Outcome) {
        if self.docker_was_there && !saved.has_docker {
            outcome.problems.push(DOCKER_IS_GONE.to_owned());
        }
        self.docker_was_there |= saved.has_docker;
    }
}

const DOCKER_IS_GONE: &str = "Docker's firewall rules are gone (`nft flush ruleset`, or a reload of a firewall): containers do not reach \
    the world, and new ones with ports fail to start; restart Docker Engine, which writes them again (with `live-restore` no container \
    stops)";

/// What iptables has, as far as it concerns us.
#[derive(Debug, Default)]
struct Saved {
    /// The rules of each chain of the table `filter`.
    filter: BTreeMap<String, String>,
    /// Whether Docker's translations of addresses are there.
    has_docker: bool,
}

impl Saved {
    fn read() -> Result<Self, NftError> {
        nft::run_program(&SAVE, &[], "").map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_whitespace().next().unwrap_or_default();
                saved.has_docker |= table == "nat" && name == "DOCKER";
                if table == "filter" {
                    saved.filter.entry(name.to_owned()).or_default();
                }
            } else if let (Some(rule), "filter") = (line.strip_prefix("-A "), table) {
                let name = rule.split_whitespace().next().unwrap_or_default();
                let rules = saved.filter.entry(name.to_owned()).or_default();
                rules.push_str(line);
                rules.push('\n');
            }
        }
        saved
    }

    /// How many jumps to our chain this one has.
    fn jumps(&self, hook: &str) -> usize {
        let jump = format!("-A {hook} -j {CHAIN}");
        self.filter.get(hook).map_or(0, |rules| rules.lines().filter(|line| *line == jump).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iptables_has_is_read_by_chain() {
        let saved = Saved::parse(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A DOCKER -i docker0 -j RETURN\nCOMMIT\n\
             *filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j WHARF-ROUTED\n\
             -A DOCKER-USER -j RETURN\n-A FORWARD -j DOCKER-USER\nCOMMIT\n",
        );
        assert!(saved.has_docker);
        assert_eq!((saved.jumps(DOCKER), saved.jumps(FORWARD)), (1, 0));
        assert_eq!(saved.filter.len(), 2);
    }
}
