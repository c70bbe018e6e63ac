//! The names of one table version, arranged for look-ups, and who may ask for which.
//!
//! - Immutable: a new table is a new zone.
//! - A name means what it means on the first of the asking task's networks that knows it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use wharf_model::{DnsTable, NetworkId, Revision};

/// Which networks each address of this node's tasks is on, the task's first network first.
pub type Sources = BTreeMap<Ipv4Addr, Vec<NetworkId>>;

/// A table that is served.
#[derive(Debug, Default)]
pub(super) struct Zone {
    pub(super) version: Option<Revision>,
    networks: HashMap<NetworkId, Names>,
    sources: HashMap<Ipv4Addr, Vec<NetworkId>>,
}

#[derive(Debug, Default)]
struct Names {
    addresses: HashMap<Box<str>, Box<[Ipv4Addr]>>,
    names: HashMap<Ipv4Addr, Box<str>>,
}

impl Zone {
    pub(super) fn new(table: &DnsTable, sources: &Sources) -> Self {
        let networks = table.networks.iter().map(|(id, names)| (*id, Names::new(names))).collect();
        let sources = sources.iter().map(|(address, networks)| (*address, networks.clone())).collect();
        Self { version: Some(table.version), networks, sources }
    }

    /// The addresses of a name in lower case, for a task at `asker` that asked on `network`; none if it knows no such name.
    pub(super) fn addresses(&self, asker: Ipv4Addr, network: NetworkId, name: &str) -> Option<&[Ipv4Addr]> {
        self.visible(asker, network).find_map(|names| names.addresses.get(name)).map(AsRef::as_ref)
    }

    /// What an address is called.
    pub(super) fn name(&self, asker: Ipv4Addr, network: NetworkId, address: Ipv4Addr) -> Option<&str> {
        self.visible(asker, network).find_map(|names| names.names.get(&address)).map(AsRef::as_ref)
    }

    /// An asker that is no task of ours is on the network it asked on: a container made by hand, or the node itself.
    fn visible(&self, asker: Ipv4Addr, network: NetworkId) -> impl Iterator<Item = &Names> {
        let known = self.sources.get(&asker).map(Vec::as_slice);
        let (known, asked) = (known.unwrap_or_default(), known.is_none().then_some(network));
        known.iter().copied().chain(asked).filter_map(|id| self.networks.get(&id))
    }
}

impl Names {
    fn new(table: &BTreeMap<String, Vec<Ipv4Addr>>) -> Self {
        let mut names: HashMap<Ipv4Addr, &str> = HashMap::new();
        // The name that says most: of the fewest addresses, and then the longest.
        let rank = |name: &str| (table.get(name).map_or(usize::MAX, Vec::len), Reverse(name.len()));
        for (name, addresses) in table {
            for address in addresses {
                let best = names.entry(*address).or_insert(name);
                if rank(name) < rank(best) {
                    *best = name;
                }
            }
        }
        let addresses = |(name, addresses): (&String, &Vec<Ipv4Addr>)| {
            (name.to_lowercase().into_boxed_str(), addresses.clone().into_boxed_slice())
        };
        Self {
            addresses: table.iter().map(addresses).collect(),
            names: names.into_iter().map(|(address, name)| (address, name.into())).collect(),
        }
    }
}
