//! The rules and settings that networks with IPv6 need: Docker Engine before 27 has none of its own for IPv6.
//!
//! - What is not of a network does not enter it, but for answers: two networks of a node cannot reach each other, and nobody outside a
//!   container. An internal network has no way out.
//! - What leaves a network for the world has the node's address, as with IPv4: a container reaches what its node reaches.
//! - The rules are there before a bridge has an IPv6 address. A network whose rules cannot be written has no address: without one, nothing
//!   is forwarded to it.

use std::{collections::BTreeMap, fmt::Write, fs, io, path::Path};

use ipnet::Ipv6Net;

use super::{
    nft::{self, Kept, NftError, Place},
    plan::{WantedNetwork, bridge_name},
};

const TABLE: &str = "ip6 wharf_ipv6";
/// Where the kernel's IPv6 settings are.
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// The rules for these networks; none if no network needs any.
pub(super) fn rules(networks: &BTreeMap<u32, WantedNetwork>) -> Option<String> {
    let (mut between, mut out) = (String::new(), String::new());
    for (vni, network) in networks {
        let Some((gateway, prefix)) = network.gateway6 else { continue };
        let Ok(subnet) = Ipv6Net::new(gateway, prefix).map(|net| net.trunc()) else { continue };
        let bridge = bridge_name(*vni);
        let enters = format!("iifname != \"{bridge}\" oifname \"{bridge}\"");
        // Writing to a string does not fail.
        let _ = write!(between, "\n    {enters} ct state established,related accept\n    {enters} drop");
        let leaves = format!("oifname != \"{bridge}\" ip6 saddr {subnet} ip6 daddr != {subnet}");
        if network.internal {
            let _ = write!(between, "\n    iifname \"{bridge}\" oifname != \"{bridge}\" drop");
        } else if network.masquerade {
            let _ = write!(out, "\n    {leaves} masquerade");
        }
    }
    let chain = |name: &str, hook: &str, rules: &str| {
        format!("  chain {name} {{\n    type {hook}; policy accept;{rules}\n  }}\n")
    };
    let nft = chain("between", "filter hook forward priority -5", &between)
        + &chain("out", "nat hook postrouting priority 95", &out);
    (!between.is_empty()).then_some(nft)
}

/// The rules of this node.
#[derive(Debug, Default)]
pub(super) struct Firewall6 {
    table: Kept,
    /// When nothing was wrong: the generation of the node's rules, and what was wanted.
    settled: Option<(u32, Option<String>)>,
}

impl Firewall6 {
    /// Makes the node's rules and settings as these networks need them. Answers how much had to be done.
    ///
    /// # Errors
    /// If they cannot be: then networks may have no IPv6 here.
    pub(super) fn ensure(&mut self, networks: &BTreeMap<u32, WantedNetwork>) -> Result<usize, NftError> {
        let wanted = rules(networks);
        let forwarded = wanted.is_some() && networks.values().any(|it| it.gateway6.is_some() && !it.internal);
        let mut changes = 0;
        let generation = nft::generation().ok();
        let is_settled = self
            .settled
            .as_ref()
            .is_some_and(|(settled, rules)| generation == Some(*settled) && *rules == wanted);
        if !is_settled {
            self.settled = None;
            match self.table.ensure(Place::Here, TABLE, wanted.as_deref()) {
                Ok(changed) => changes += usize::from(changed),
                // Who has no network with IPv6 needs no `nft`.
                Err(NftError::Missing) if wanted.is_none() => {}
                Err(error) => return Err(error),
            }
            self.settled = nft::generation().ok().map(|generation| (generation, wanted));
        }
        if forwarded {
            changes += forward(Path::new(SETTINGS)).map_err(NftError::Run)?;
        }
        Ok(changes)
    }
}

/// Lets the node forward. A node that forwards takes no routes from routers on its links any more, unless it is told to go on.
fn forward(settings: &Path) -> io::Result<usize> {
    let forwarding = settings.join("all/forwarding");
    if fs::read_to_string(&forwarding)?.trim() != "0" {
        return Ok(0);
    }
    for entry in fs::read_dir(settings)? {
        let advertisements = entry?.path().join("accept_ra");
        if fs::read_to_string(&advertisements).is_ok_and(|text| text.trim() == "1") {
            // An interface that went away meanwhile needs none.
            let _ = fs::write(&advertisements, "2");
        }
    }
    fs::write(forwarding, "1")?;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_begins_to_forward_goes_on_listening_to_its_routers() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, value: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        };
        let get = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        put("all/forwarding", "0\n");
        put("eth0/accept_ra", "1\n");
        put("eth1/accept_ra", "0\n");
        assert_eq!(forward(folder.path()).unwrap(), 1);
        assert_eq!((get("all/forwarding").as_str(), get("eth0/accept_ra").as_str()), ("1", "2"));
        assert_eq!(get("eth1/accept_ra"), "0\n", "who does not listen need not begin to");
        put("eth1/accept_ra", "1\n");
        assert_eq!(forward(folder.path()).unwrap(), 0);
        assert_eq!(get("eth1/accept_ra"), "1\n", "a router is left alone");
    }
}
