//! The names of one table version, arranged for look-ups, and who may ask for which.
//!
//! - A new table is a new zone, or [changes](Zone::alter) the one before where they differ: it is the same then as a new one, but for
//!   whose turn it is in answers that have not changed.
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

use serde::{Deserialize, Serialize};
use wharf_model::{
    DnsTable, ExternalHost, Ipv6Addresses, NamedPort, NetworkId, Revision, VirtualService,
    difference::{Change, Differ, Key, MapDifference, Never, Unfit},
};

use super::{
    protocol::{Content, Difference},
    wire,
};

/// Who asks from the addresses of this node's tasks.
pub type Sources = BTreeMap<Ipv4Addr, Source>;

/// A task that asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Said", into = "Said")]
pub struct Source {
    /// The networks that it is on, its first one first.
    pub networks: Vec<NetworkId>,
    /// It has resolvers of its own for what is not ours, which its engine asks when we say that we cannot.
    pub asks_others: bool,
}
impl From<Vec<NetworkId>> for Source {
    fn from(networks: Vec<NetworkId>) -> Self {
        Self { networks, asks_others: false }
    }
}

/// How a [`Source`] is written: as earlier builds did, as far as it was known to them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Said {
    Networks(Vec<NetworkId>),
    Whole { networks: Vec<NetworkId>, asks_others: bool },
}
impl From<Said> for Source {
    fn from(said: Said) -> Self {
        match said {
            Said::Networks(networks) => networks.into(),
            Said::Whole { networks, asks_others } => Self { networks, asks_others },
        }
    }
}
impl From<Source> for Said {
    fn from(Source { networks, asks_others }: Source) -> Self {
        if asks_others { Self::Whole { networks, asks_others } } else { Self::Networks(networks) }
    }
}

impl Differ for Source {
    type Difference = Never;
    fn diff(&self, new: &Self) -> Option<Change<Self>> {
        (self != new).then(|| Change::Whole(new.clone()))
    }
    fn amend(&mut self, difference: Never) -> Result<(), Unfit> {
        match difference {}
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Fnv>>;

/// A table that is served.
#[derive(Debug, Default)]
pub(super) struct Zone {
    pub(super) version: Option<Revision>,
    networks: Vec<Names>,
    /// Where in `networks` each one is.
    places: Map<NetworkId, usize>,
    sources: Map<Ipv4Addr, Places>,
    /// Askers for whom virtual addresses lead somewhere.
    programmed: BTreeSet<Ipv4Addr>,
    /// Somewhere two things are called the same: what one of them was is not known any more.
    tangled: bool,
}

/// What a [`Source`] may ask for.
#[derive(Debug, Default, Clone)]
struct Places {
    networks: Box<[usize]>,
    asks_others: bool,
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
        let mut tangled = false;
        for id in networks.keys().chain(externals.keys()).chain(hosts.keys()).chain(vips.keys()) {
            zone.network(*id);
        }
        for (id, place) in &zone.places {
            let into = &mut zone.networks[*place];
            let of = OfNetwork { table, id: *id, ipv6: into.ipv6.clone(), seed };
            for (name, entry) in keys(networks, *id).flat_map(|name| of.tasks(name)) {
                tangled |= into.add(name, entry);
            }
            for (name, entry) in keys(ports, *id).flat_map(|service| of.ports(service)) {
                tangled |= into.add(name, entry);
            }
            for (name, entry) in keys(externals, *id).flat_map(|name| of.outside(name)) {
                tangled |= into.add(name, entry);
            }
            let addresses = keys(hosts, *id).chain(keys(vips, *id));
            into.hosts = addresses.filter_map(|address| Some((*address, of.host(*address)?))).collect();
            for (name, entry) in keys(vips, *id).flat_map(|address| of.virtuals(*address)) {
                tangled |= into.virtuals.insert(name, entry).is_some();
            }
        }
        zone.tangled = tangled;
        for (address, source) in sources {
            zone.sources.insert(*address, zone.places_of(source));
        }
        zone
    }

    fn places_of(&self, Source { networks, asks_others }: &Source) -> Places {
        let networks = networks.iter().filter_map(|id| self.places.get(id).copied()).collect();
        Places { networks, asks_others: *asks_others }
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

    /// Whether somebody else is asked for what we do not know.
    pub(super) fn asks_others(&self, asker: Ipv4Addr) -> bool {
        self.sources.get(&asker).is_some_and(|source| source.asks_others)
    }

    /// An asker that is no task of ours is on the network it asked on: a container made by hand, or the node itself.
    fn visible(&self, asker: Ipv4Addr, network: NetworkId) -> impl Iterator<Item = &Names> {
        let known = self.sources.get(&asker).map(|source| &*source.networks);
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

    /// Adds what a name leads to; whether something is called so already.
    fn add(&mut self, name: Box<[u8]>, entry: Entry) -> bool {
        match self.entries.entry(name) {
            Slot::Vacant(slot) => {
                slot.insert(entry);
                false
            }
            // A service's own name is nobody else's, whatever the table says.
            Slot::Occupied(mut slot) => {
                if slot.get().is_empty() {
                    slot.insert(entry);
                }
                true
            }
        }
    }
}

fn keys<K: Ord, V>(section: &BTreeMap<NetworkId, BTreeMap<K, V>>, id: NetworkId) -> impl Iterator<Item = &K> {
    section.get(&id).into_iter().flat_map(BTreeMap::keys)
}

/// What one network of a table says, thing by thing: the names of each as `wire` has them, and what they lead to.
struct OfNetwork<'t> {
    table: &'t DnsTable,
    id: NetworkId,
    ipv6: Option<Arc<Ipv6Addresses>>,
    seed: u32,
}

impl OfNetwork<'_> {
    fn tasks(&self, name: &str) -> Option<(Box<[u8]>, Entry)> {
        let addresses = self.table.networks.get(&self.id)?.get(name)?;
        Some((wire::name(name)?, Entry::Tasks(self.turning(addresses))))
    }

    fn ports(&self, service: &str) -> Vec<(Box<[u8]>, Entry)> {
        let names = self.table.networks.get(&self.id);
        let ports = names.and_then(|_| self.table.ports.get(&self.id)?.get(service));
        let addresses = names.and_then(|names| names.get(service)).map(Vec::as_slice).unwrap_or_default();
        let each = |port: &NamedPort| {
            let (number, protocol) = (port.port, port.protocol.as_str());
            let names = port.name.clone().into_iter().chain([number.to_string()]);
            let names = names.filter_map(|name| wire::name(&format!("_{name}._{protocol}.{service}")));
            names.map(|name| (name, Entry::Port(number, self.turning(addresses)))).collect::<Vec<_>>()
        };
        ports.into_iter().flatten().flat_map(each).collect()
    }

    fn outside(&self, name: &str) -> Option<(Box<[u8]>, Entry)> {
        let entry = match self.table.externals.get(&self.id)?.get(name)? {
            ExternalHost::Address(address) => Entry::Outside(*address),
            ExternalHost::Domain(domain) => Entry::Alias(wire::name(domain)?),
        };
        Some((wire::name(name)?, entry))
    }

    fn vip(&self, address: Ipv4Addr) -> Option<&VirtualService> {
        self.table.vips.get(&self.id)?.get(&address)
    }

    /// What an address is called: a virtual one as its service is.
    fn host(&self, address: Ipv4Addr) -> Option<Box<[u8]>> {
        let virtual_name = self.vip(address).and_then(|service| wire::name(&service.name));
        virtual_name.or_else(|| wire::name(self.table.hosts.get(&self.id)?.get(&address)?))
    }

    fn virtuals(&self, address: Ipv4Addr) -> Vec<(Box<[u8]>, Entry)> {
        // It has no IPv6 address.
        let entry = || Entry::Tasks(Addresses { all: [address].into(), turn: self.seed.into(), ipv6: None });
        let names = self.vip(address).into_iter().flat_map(|service| &service.names);
        names.filter_map(|name| wire::name(name)).map(|name| (name, entry())).collect()
    }

    fn turning(&self, addresses: &[Ipv4Addr]) -> Addresses {
        Addresses { all: addresses.into(), turn: AtomicU32::new(self.seed), ipv6: self.ipv6.clone() }
    }
}

/// What a difference changes of the names of one network.
#[derive(Debug, Default)]
struct Touched {
    names: BTreeSet<String>,
    /// Services whose ports, or the tasks that have them, change.
    services: BTreeSet<String>,
    externals: BTreeSet<String>,
    hosts: BTreeSet<Ipv4Addr>,
    vips: BTreeSet<Ipv4Addr>,
}

/// What is changed in one network of a zone: first what goes, then what comes.
#[derive(Debug, Default)]
struct Changes {
    place: usize,
    entries_gone: Vec<Box<[u8]>>,
    entries: Vec<(Box<[u8]>, Entry)>,
    virtuals_gone: Vec<Box<[u8]>>,
    virtuals: Vec<(Box<[u8]>, Entry)>,
    hosts: Vec<(Ipv4Addr, Option<Box<[u8]>>)>,
}

/// What a zone that was changed has no more.
pub(super) type Cast = Vec<Option<Entry>>;

/// How a zone becomes that of other names.
#[derive(Debug)]
pub(super) struct Alteration {
    version: Revision,
    networks: Vec<Changes>,
    sources: Vec<(Ipv4Addr, Option<Places>)>,
    programmed: Option<BTreeSet<Ipv4Addr>>,
}

/// What goes from a zone, found before the names are changed.
#[derive(Debug)]
pub(super) struct Leaving {
    touched: BTreeMap<NetworkId, (Touched, Changes)>,
    sources: BTreeSet<Ipv4Addr>,
    programmed: bool,
}

impl Zone {
    /// What goes from this zone, which is that of `names`, with a difference of them. None if a new zone is made more easily.
    pub(super) fn leaving(&self, names: &Content, difference: &Difference) -> Option<Leaving> {
        if self.tangled {
            return None;
        }
        let mut leaving = Leaving { touched: BTreeMap::new(), sources: BTreeSet::new(), programmed: false };
        match &difference.sources {
            None => {}
            Some(Change::Whole(_)) => return None,
            Some(Change::Part(sources)) => leaving.sources = touched(sources).cloned().collect(),
        }
        let table = match &difference.table {
            None => return Some(leaving),
            Some(Change::Whole(_)) => return None,
            Some(Change::Part(table)) => table,
        };
        if table.ipv6.is_some() {
            return None;
        }
        leaving.programmed = table.programmed.is_some();
        let all = &mut leaving.touched;
        note(&table.networks, all, |touched, names| {
            touched.services.extend(names.clone());
            touched.names.extend(names);
        })?;
        note(&table.ports, all, |touched, services| touched.services.extend(services))?;
        note(&table.externals, all, |touched, names| touched.externals.extend(names))?;
        note(&table.hosts, all, |touched, hosts| touched.hosts.extend(hosts))?;
        note(&table.vips, all, |touched, vips| {
            touched.hosts.extend(vips.clone());
            touched.vips.extend(vips);
        })?;
        for (id, (touched, changes)) in all {
            changes.place = *self.places.get(id)?;
            let of = self.of(&names.table, *id, changes.place, 0);
            (changes.entries_gone, _) = of.entries(touched).into_iter().unzip::<_, _, _, Vec<_>>();
            (changes.virtuals_gone, _) = of.virtuals_of(touched).into_iter().unzip::<_, _, _, Vec<_>>();
        }
        Some(leaving)
    }

    /// How this zone becomes that of the `names` that are left after the difference. None if a new one has to be made.
    pub(super) fn alteration(&self, leaving: Leaving, names: &Content, seed: u32) -> Option<Alteration> {
        let mut networks = Vec::new();
        for (id, (touched, mut changes)) in leaving.touched {
            let of = self.of(&names.table, id, changes.place, seed);
            let now = &self.networks[changes.place];
            (changes.entries, changes.virtuals) = (of.entries(&touched), of.virtuals_of(&touched));
            changes.hosts = touched.hosts.iter().map(|address| (*address, of.host(*address))).collect();
            if tangles(&now.entries, &changes.entries_gone, &changes.entries)
                || tangles(&now.virtuals, &changes.virtuals_gone, &changes.virtuals)
            {
                return None;
            }
            networks.push(changes);
        }
        let of_source = |address: Ipv4Addr| names.sources.get(&address).map(|source| self.places_of(source));
        Some(Alteration {
            version: names.table.version,
            networks,
            sources: leaving.sources.into_iter().map(|address| (address, of_source(address))).collect(),
            programmed: leaving.programmed.then(|| names.table.programmed.clone()),
        })
    }

    /// Becomes what the alteration says, in time proportional to it. Answers what is to be dropped where that holds up nobody.
    pub(super) fn alter(&mut self, alteration: Alteration) -> Cast {
        let mut cast = Vec::new();
        for changes in alteration.networks {
            let names = &mut self.networks[changes.place];
            cast.extend(changes.entries_gone.iter().map(|name| names.entries.remove(name)));
            cast.extend(changes.entries.into_iter().map(|(name, entry)| names.entries.insert(name, entry)));
            cast.extend(changes.virtuals_gone.iter().map(|name| names.virtuals.remove(name)));
            cast.extend(changes.virtuals.into_iter().map(|(name, entry)| names.virtuals.insert(name, entry)));
            for (address, name) in changes.hosts {
                match name {
                    Some(name) => drop(names.hosts.insert(address, name)),
                    None => drop(names.hosts.remove(&address)),
                }
            }
        }
        for (address, places) in alteration.sources {
            match places {
                Some(places) => drop(self.sources.insert(address, places)),
                None => drop(self.sources.remove(&address)),
            }
        }
        if let Some(programmed) = alteration.programmed {
            self.programmed = programmed;
        }
        self.version = Some(alteration.version);
        cast
    }

    fn of<'t>(&self, table: &'t DnsTable, id: NetworkId, place: usize, seed: u32) -> OfNetwork<'t> {
        OfNetwork { table, id, ipv6: self.networks[place].ipv6.clone(), seed }
    }
}

impl OfNetwork<'_> {
    fn entries(&self, touched: &Touched) -> Vec<(Box<[u8]>, Entry)> {
        let names = touched.names.iter().flat_map(|name| self.tasks(name));
        let ports = touched.services.iter().flat_map(|service| self.ports(service));
        names.chain(ports).chain(touched.externals.iter().flat_map(|name| self.outside(name))).collect()
    }

    fn virtuals_of(&self, touched: &Touched) -> Vec<(Box<[u8]>, Entry)> {
        touched.vips.iter().flat_map(|address| self.virtuals(*address)).collect()
    }
}

/// Whether something that comes is called as something that stays, or something else that comes.
fn tangles(now: &Map<Box<[u8]>, Entry>, gone: &[Box<[u8]>], come: &[(Box<[u8]>, Entry)]) -> bool {
    let gone: BTreeSet<_> = gone.iter().collect();
    let mut names = BTreeSet::new();
    come.iter().any(|(name, _)| !names.insert(name) || (now.contains_key(name) && !gone.contains(name)))
}

/// Every key that a difference names.
fn touched<K: Key, V: Differ>(map: &MapDifference<K, V>) -> impl Iterator<Item = &K> {
    map.gone.iter().chain(map.put.keys()).chain(map.changed.keys())
}

/// Notes what changes in one section of a table; none if that is more than things of networks that stay.
fn note<K: Key, V: Differ>(
    section: &Option<Change<BTreeMap<NetworkId, BTreeMap<K, V>>>>,
    all: &mut BTreeMap<NetworkId, (Touched, Changes)>,
    put: impl Fn(&mut Touched, BTreeSet<K>),
) -> Option<()> {
    match section {
        None => Some(()),
        Some(Change::Whole(_)) => None,
        Some(Change::Part(MapDifference { gone, put: new, changed })) => {
            for (id, of_network) in changed {
                let (into, _) = all.entry(*id).or_default();
                put(into, touched(of_network).cloned().collect());
            }
            (gone.is_empty() && new.is_empty()).then_some(())
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

#[cfg(test)]
mod tests {
    use ipnet::Ipv6Net;
    use proptest::prelude::*;
    use wharf_model::Protocol;

    use super::*;

    fn network(number: u8) -> NetworkId {
        NetworkId::from_parts(1, [number; 10])
    }

    fn address() -> impl Strategy<Value = Ipv4Addr> {
        (0..8_u8).prop_map(|last| Ipv4Addr::new(10, 0, 0, last))
    }

    /// Names of which some are the same to DNS, and some are none.
    fn name() -> impl Strategy<Value = String> {
        let names = ["web", "WEB", "db", "web.shop", "_http._tcp.web", "_80._tcp.db", "a..b", "tasks.web"];
        prop::sample::select(Vec::from(names)).prop_map(str::to_owned)
    }

    fn section<V: Strategy>(value: V) -> impl Strategy<Value = BTreeMap<NetworkId, V::Value>> {
        prop::collection::btree_map((1..4_u8).prop_map(network), value, 0..4)
    }

    fn content() -> impl Strategy<Value = Content> {
        use prop::collection::{btree_map, btree_set, vec};
        let port = (0..3_usize).prop_map(|at| NamedPort {
            port: [80, 81, 443][at],
            protocol: Protocol::Tcp,
            name: [Some("http".to_owned()), None, Some("80".to_owned())][at].clone(),
        });
        let host = prop_oneof![
            address().prop_map(|address| ExternalHost::Address(address.into())),
            Just(ExternalHost::Domain("db.example.com".into())),
        ];
        let vip =
            (name(), btree_set(name(), 0..3), btree_set(address(), 0..3)).prop_map(|(name, names, tasks)| {
                VirtualService { name, names, tasks, ..VirtualService::default() }
            });
        let ipv6 = prop::bool::weighted(0.2).prop_map(|one| {
            let subnet: Ipv6Net = if one { "fd00::/64" } else { "fd01::/64" }.parse().unwrap();
            Ipv6Addresses::new(subnet)
        });
        let table = (
            section(btree_map(name(), vec(address(), 0..4), 0..6)),
            section(btree_map(name(), host, 0..2)),
            section(btree_map(address(), name(), 0..4)),
            section(btree_map(name(), vec(port, 0..3), 0..3)),
            prop::option::weighted(0.2, section(ipv6)),
            section(btree_map(address(), vip, 0..2)),
            btree_set(address(), 0..3),
            0..3_u64,
        );
        let table =
            table.prop_map(|(networks, externals, hosts, ports, ipv6, vips, programmed, version)| DnsTable {
                version: Revision(version),
                networks,
                externals,
                hosts,
                ports,
                ipv6: ipv6.unwrap_or_default(),
                vips,
                programmed,
            });
        let networks = vec((1..5_u8).prop_map(network), 0..3);
        let source =
            (networks, any::<bool>()).prop_map(|(networks, asks_others)| Source { networks, asks_others });
        let sources = btree_map(address(), source, 0..4);
        (table, sources).prop_map(|(table, sources)| Content { table, sources })
    }

    /// All that a zone says, but for whose turn it is.
    fn said(zone: &Zone) -> String {
        let entry = |entry: &Entry| match entry {
            Entry::Tasks(addresses) => format!("{:?} {:?}", addresses.all, addresses.ipv6),
            Entry::Port(port, addresses) => format!("{port} {:?} {:?}", addresses.all, addresses.ipv6),
            Entry::Outside(address) => format!("{address}"),
            Entry::Alias(name) => format!("{name:?}"),
        };
        let entries = |map: &Map<Box<[u8]>, Entry>| -> BTreeMap<_, _> {
            map.iter().map(|(name, value)| (name.clone(), entry(value))).collect()
        };
        let networks: BTreeMap<_, _> = zone
            .places
            .iter()
            .map(|(id, place)| {
                let names = &zone.networks[*place];
                let hosts: BTreeMap<_, _> = names.hosts.iter().collect();
                (
                    *id,
                    format!(
                        "{:?} {:?} {hosts:?} {:?}",
                        entries(&names.entries),
                        entries(&names.virtuals),
                        names.ipv6
                    ),
                )
            })
            .collect();
        let ids: BTreeMap<_, _> = zone.places.iter().map(|(id, place)| (*place, *id)).collect();
        let sources: BTreeMap<_, _> = zone
            .sources
            .iter()
            .map(|(address, Places { networks, asks_others })| {
                (*address, (networks.iter().map(|place| ids[place]).collect::<Vec<_>>(), *asks_others))
            })
            .collect();
        format!("{:?} {networks:?} {sources:?} {:?}", zone.version, zone.programmed)
    }

    fn zone(content: &Content) -> Zone {
        Zone::new(&content.table, &content.sources, 0)
    }

    /// Changes the zone of the old names to that of the new ones; whether that was possible.
    fn change(old: &Content, new: &Content) -> Option<Zone> {
        let mut zone = zone(old);
        let difference = Difference::between((&old.table, &old.sources), (&new.table, &new.sources))?;
        let leaving = zone.leaving(old, &difference)?;
        let mut names = old.clone();
        names.amend(difference).unwrap();
        assert_eq!(names, *new);
        let alteration = zone.alteration(leaving, &names, 0)?;
        zone.alter(alteration);
        Some(zone)
    }

    proptest! {
        #[test]
        fn a_zone_that_was_changed_says_the_same_as_a_new_one(
            old in content(),
            other in content(),
            take in prop::collection::vec(any::<bool>(), 7),
        ) {
            // Networks stay more often than not: whatever else changes is changed in them.
            let mut new = old.clone();
            let (to, from) = (&mut new.table, &other.table);
            mix(&mut to.networks, &from.networks, take[0]);
            mix(&mut to.externals, &from.externals, take[1]);
            mix(&mut to.hosts, &from.hosts, take[2]);
            mix(&mut to.ports, &from.ports, take[3]);
            mix(&mut to.vips, &from.vips, take[4]);
            if take[5] {
                to.programmed = from.programmed.clone();
            }
            if take[6] {
                new.sources = other.sources.clone();
            }
            for new in [&new, &other] {
                if let Some(changed) = change(&old, new) {
                    prop_assert_eq!(said(&changed), said(&zone(new)));
                    // And once more from there.
                    prop_assert!(!changed.tangled);
                }
            }
        }
    }

    fn mix<V: Clone>(to: &mut BTreeMap<NetworkId, V>, from: &BTreeMap<NetworkId, V>, really: bool) {
        for (id, value) in to.iter_mut().filter(|_| really) {
            *value = from.get(id).unwrap_or(value).clone();
        }
    }

    #[test]
    fn what_changes_every_day_needs_no_new_zone() {
        let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
        let mut old = Content { table: DnsTable::default(), sources: Sources::new() };
        let names = [("web", vec![at(1), at(2)]), ("db", vec![at(3)])];
        old.table.networks.insert(network(1), names.map(|(name, to)| (name.to_owned(), to)).into());
        let http = NamedPort { port: 80, protocol: Protocol::Tcp, name: Some("http".into()) };
        old.table.ports.insert(network(1), BTreeMap::from([("web".to_owned(), vec![http])]));
        old.table.hosts.insert(network(1), BTreeMap::from([(at(1), "shop-web-1".to_owned())]));
        let vip = VirtualService {
            name: "db".into(),
            names: ["db".to_owned()].into(),
            ..VirtualService::default()
        };
        old.table.vips.insert(network(1), BTreeMap::from([(at(9), vip)]));
        old.sources.insert(at(1), vec![network(1)].into());
        let mut new = old.clone();
        new.table.version = Revision(2);
        let of = new.table.networks.get_mut(&network(1)).unwrap();
        of.insert("web".into(), vec![at(2), at(4)]);
        of.insert("cache".into(), vec![]);
        new.table.hosts.insert(network(1), BTreeMap::from([(at(4), "shop-web-3".to_owned())]));
        new.table.vips.get_mut(&network(1)).unwrap().get_mut(&at(9)).unwrap().names.insert("db.shop".into());
        new.sources.insert(at(4), vec![network(1)].into());
        new.table.programmed.insert(at(4));
        let changed = change(&old, &new).expect("it is changed in place");
        assert_eq!(said(&changed), said(&zone(&new)));
        let port = wire::name("_http._tcp.web").unwrap();
        let Some(Entry::Port(80, addresses)) = changed.find(at(4), network(1), &port) else {
            panic!("no port")
        };
        assert_eq!(addresses.all[..], [at(2), at(4)], "ports follow their service's tasks");
    }

    #[test]
    fn a_source_is_written_as_earlier_builds_read_it_and_read_as_they_wrote_it() {
        let mut source = Source::from(vec![network(1)]);
        let old = serde_json::to_string(&source.networks).unwrap();
        assert_eq!(serde_json::to_string(&source).unwrap(), old);
        assert_eq!(serde_json::from_str::<Source>(&old).unwrap(), source);
        source.asks_others = true;
        let new = serde_json::to_string(&source).unwrap();
        assert_eq!(serde_json::from_str::<Source>(&new).unwrap(), source);
    }

    #[test]
    fn what_is_called_the_same_is_sorted_out_by_a_new_zone() {
        let of = |names: &[&str]| {
            let names = names.iter().map(|name| ((*name).to_owned(), vec![]));
            let mut table = DnsTable::default();
            table.networks.insert(network(1), names.collect());
            Content { table, sources: Sources::new() }
        };
        assert!(change(&of(&["web"]), &of(&["web", "db"])).is_some());
        assert!(change(&of(&["web"]), &of(&["WEB", "web"])).is_none(), "they would become one");
        assert!(change(&of(&["WEB", "web"]), &of(&["web"])).is_none(), "they were one");
    }
}
