//! The names of one table version, arranged for look-ups, and who may ask for which.
//!
//! - Immutable but for the turns of its answers: a new table is a new zone.
//! - A name means what it means on the first of the asking task's networks where it leads somewhere; a name that leads nowhere on any
//!   exists all the same.
//! - Keys are names as `wire` has them. Names that DNS cannot carry are left out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry as Slot},
    hash::{BuildHasherDefault, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use wharf_model::{DnsTable, ExternalHost, Ipv6Addresses, NamedPort, NetworkId, Revision};

use super::wire;

/// Which networks each address of this node's tasks is on, the task's first network first.
pub type Sources = BTreeMap<Ipv4Addr, Vec<NetworkId>>;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Fnv>>;

/// A table that is served.
#[derive(Debug, Default)]
pub(super) struct Zone {
    pub(super) version: Option<Revision>,
    networks: Vec<Names>,
    /// Where in `networks` each one is.
    places: Map<NetworkId, usize>,
    sources: Map<Ipv4Addr, Box<[usize]>>,
    /// Askers for whom virtual addresses lead somewhere.
    programmed: BTreeSet<Ipv4Addr>,
}

/// The names of one network.
#[derive(Debug, Default)]
struct Names {
    entries: Map<Box<[u8]>, Entry>,
    /// What names lead to for those for whom virtual addresses lead somewhere; in `entries` these lead to the tasks.
    virtuals: Map<Box<[u8]>, Entry>,
    /// What addresses are called.
    hosts: Map<Ipv4Addr, Box<[u8]>>,
    /// Its IPv6 addresses, if it has any.
    ipv6: Option<Arc<Ipv6Addresses>>,
}

/// What a name leads to.
#[derive(Debug)]
pub(super) enum Entry {
    /// Tasks.
    Tasks(Addresses),
    /// One port of tasks: a name such as `_http._tcp.web`.
    Port(u16, Addresses),
    /// An address outside the cluster.
    Outside(IpAddr),
    /// Another name.
    Alias(Box<[u8]>),
}

/// Addresses that take turns at being first.
#[derive(Debug)]
pub(super) struct Addresses {
    all: Box<[Ipv4Addr]>,
    turn: AtomicU32,
    ipv6: Option<Arc<Ipv6Addresses>>,
}

impl Addresses {
    /// All of them, beginning with the one after that of the last call.
    pub(super) fn rotated(&self) -> impl Iterator<Item = Ipv4Addr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let (after, before) = self.all.split_at(turn % self.all.len().max(1));
        before.iter().chain(after).copied()
    }
    /// Their IPv6 addresses in the same way; nothing if their network has none.
    pub(super) fn rotated6(&self) -> impl Iterator<Item = Ipv6Addr> {
        let ipv6 = self.ipv6.as_deref();
        ipv6.into_iter().flat_map(|ipv6| self.rotated().map(|address| ipv6.of(address)))
    }
    /// The IPv6 address of one of them.
    pub(super) fn ipv6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        Some(self.ipv6.as_deref()?.of(address))
    }
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        match self {
            Self::Tasks(addresses) | Self::Port(_, addresses) => addresses.is_empty(),
            Self::Outside(_) | Self::Alias(_) => false,
        }
    }
}

impl Zone {
    /// The names of `table`. `seed` says which addresses are first at first: not the same ones on every node.
    pub(super) fn new(table: &DnsTable, sources: &Sources, seed: u32) -> Self {
        let DnsTable { version, networks, externals, hosts, ports, ipv6, vips, programmed } = table;
        let mut zone = Self { version: Some(*version), programmed: programmed.clone(), ..Self::default() };
        for (id, ipv6) in ipv6 {
            zone.network(*id).ipv6 = Some(Arc::new(ipv6.clone()));
        }
        for (id, names) in networks {
            let into = zone.network(*id);
            for (name, addresses) in names {
                into.add(name, Entry::Tasks(into.turning(addresses, seed)));
            }
            let ports = ports.get(id).into_iter().flatten();
            for (service, ports) in ports {
                let addresses = names.get(service).map(Vec::as_slice).unwrap_or_default();
                ports.iter().for_each(|port| into.add_port(service, port, addresses, seed));
            }
        }
        for (id, names) in externals {
            let into = zone.network(*id);
            for (name, host) in names {
                match host {
                    ExternalHost::Address(address) => into.add(name, Entry::Outside(*address)),
                    ExternalHost::Domain(domain) => {
                        wire::name(domain).into_iter().for_each(|to| into.add(name, Entry::Alias(to)));
                    }
                }
            }
        }
        for (id, names) in hosts {
            let named = names.iter().filter_map(|(address, name)| Some((*address, wire::name(name)?)));
            zone.network(*id).hosts = named.collect();
        }
        for (id, vips) in vips {
            let into = zone.network(*id);
            for (address, service) in vips {
                into.hosts.extend(wire::name(&service.name).map(|name| (*address, name)));
                // It has no IPv6 address.
                let entry =
                    || Entry::Tasks(Addresses { all: [*address].into(), turn: seed.into(), ipv6: None });
                let names = service.names.iter().filter_map(|name| wire::name(name));
                into.virtuals.extend(names.map(|name| (name, entry())));
            }
        }
        for (address, networks) in sources {
            let places = networks.iter().filter_map(|id| zone.places.get(id).copied()).collect();
            zone.sources.insert(*address, places);
        }
        zone
    }

    fn network(&mut self, id: NetworkId) -> &mut Names {
        let place = *self.places.entry(id).or_insert_with(|| {
            self.networks.push(Names::default());
            self.networks.len() - 1
        });
        &mut self.networks[place]
    }

    /// What a name leads to for a task at `asker` that asked on `network`; none if it knows no such name.
    pub(super) fn find(&self, asker: Ipv4Addr, network: NetworkId, name: &[u8]) -> Option<&Entry> {
        let mut empty = None;
        let programmed = self.programmed.contains(&asker);
        for entry in self.visible(asker, network).filter_map(|names| names.get(name, programmed)) {
            if !entry.is_empty() {
                return Some(entry);
            }
            empty = empty.or(Some(entry));
        }
        empty
    }

    /// What an address is called.
    pub(super) fn host(&self, asker: Ipv4Addr, network: NetworkId, address: Ipv4Addr) -> Option<&[u8]> {
        self.visible(asker, network).find_map(|names| names.hosts.get(&address)).map(AsRef::as_ref)
    }

    /// What an IPv6 address is called.
    pub(super) fn host6(&self, asker: Ipv4Addr, network: NetworkId, address: Ipv6Addr) -> Option<&[u8]> {
        let mut visible = self.visible(asker, network);
        visible.find_map(|names| names.hosts.get(&names.ipv6.as_deref()?.whose(address)?)).map(AsRef::as_ref)
    }

    /// Whether an IPv6 address is of a network of the node: nobody else can name it.
    pub(super) fn is_ours6(&self, address: Ipv6Addr) -> bool {
        self.networks
            .iter()
            .filter_map(|names| names.ipv6.as_deref())
            .any(|ipv6| ipv6.subnet.contains(&address))
    }

    /// An asker that is no task of ours is on the network it asked on: a container made by hand, or the node itself.
    fn visible(&self, asker: Ipv4Addr, network: NetworkId) -> impl Iterator<Item = &Names> {
        let known = self.sources.get(&asker).map(AsRef::as_ref);
        let asked = if known.is_none() { self.places.get(&network) } else { None };
        known.unwrap_or_default().iter().chain(asked).map(|place| &self.networks[*place])
    }
}

impl Names {
    /// What a name leads to, also as a virtual address if the asker is `programmed` for those.
    fn get(&self, name: &[u8], programmed: bool) -> Option<&Entry> {
        let entry = self.virtuals.get(name).filter(|_| programmed);
        entry.or_else(|| self.entries.get(name))
    }

    fn add(&mut self, name: &str, entry: Entry) {
        if let Some(name) = wire::name(name) {
            match self.entries.entry(name) {
                Slot::Vacant(slot) => drop(slot.insert(entry)),
                // A service's own name is nobody else's, whatever the table says.
                Slot::Occupied(mut slot) if slot.get().is_empty() => drop(slot.insert(entry)),
                Slot::Occupied(_) => {}
            }
        }
    }

    fn turning(&self, addresses: &[Ipv4Addr], seed: u32) -> Addresses {
        Addresses { all: addresses.into(), turn: AtomicU32::new(seed), ipv6: self.ipv6.clone() }
    }

    fn add_port(&mut self, service: &str, port: &NamedPort, addresses: &[Ipv4Addr], seed: u32) {
        let protocol = port.protocol.as_str();
        for name in port.name.clone().into_iter().chain([port.port.to_string()]) {
            let entry = Entry::Port(port.port, self.turning(addresses, seed));
            self.add(&format!("_{name}._{protocol}.{service}"), entry);
        }
    }
}

/// A quick hash (FNV-1a) for tables whose keys come from the server: nobody who asks can add one.
#[derive(Clone, Copy)]
struct Fnv(u64);
impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}
impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x0100_0000_01b3);
        // The table takes the upper bits, too.
        self.0 ^= self.0 >> 29;
    }
    fn write_usize(&mut self, length: usize) {
        self.0 ^= length as u64;
    }
    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
