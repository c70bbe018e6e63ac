//! Reads what the kernel has of our networks, and carries plans out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv4Net;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{
            AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoBridge, InfoBridgePort, InfoData, InfoKind,
            InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
            RouteVia,
        },
    },
};

use super::{
    announce::announce,
    members,
    netlink::{Change, Netlink, route_to},
    plan::{
        Actual, Bridge, Hop, Mac, Operation, Plan, Port, PortMake, Route, Underlay, Underlays, bridge_name,
        port_name, vni_of,
    },
};

/// What is there, and what the networks could run over.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) actual: Actual,
    /// Which interface holds an address, and its largest packet.
    uplinks: BTreeMap<IpAddr, Uplink>,
    /// How each link looks.
    pub(super) links: BTreeMap<u32, Seen>,
}

/// An interface that holds an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) device: u32,
    /// Its largest packet.
    pub(super) mtu: u32,
}

impl Observed {
    /// The interface that holds the node's address; none if no interface does.
    pub(super) fn uplink(&self, node: IpAddr) -> Option<Uplink> {
        self.uplinks.get(&node).copied()
    }
}

impl Observed {
    /// Every address of this machine, and the interface that holds it.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.uplinks.iter().map(|(address, uplink)| (*address, uplink.device))
    }
}

/// How a link looks, as far as we care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) name: Option<String>,
    pub(super) mtu: u32,
    pub(super) master: Option<u32>,
    /// The link it is on top of.
    pub(super) parent: Option<u32>,
    pub(super) up: bool,
    pub(super) mac: Mac,
    ipv4: Option<(bool, bool)>,
    filtered: Option<bool>,
}

impl Seen {
    pub(super) fn of(link: &LinkMessage) -> Self {
        let link = Link(link);
        Self {
            name: link.name().map(str::to_owned),
            mtu: link.mtu(),
            master: link.master(),
            parent: link.parent(),
            up: link.up(),
            mac: link.mac(),
            ipv4: link.ipv4(),
            filtered: link.filtered(),
        }
    }
}

/// The number that marks routes as ours: nobody else is known to use it.
pub(super) const ROUTE_PROTOCOL: u8 = 87;

/// What failed of a plan, by network: what was tried, and why not.
pub(super) type Failures = BTreeMap<u32, (String, io::Error)>;

/// Reads everything, and where packets for `nodes` would go. A few system calls per thousand entries, and two per node.
pub(super) fn observe(netlink: &mut Netlink, nodes: &BTreeSet<IpAddr>) -> io::Result<Observed> {
    let mut observed = Observed::default();
    let links = links(netlink)?;
    observed.links = links.iter().map(|link| (link.header.index, Seen::of(link))).collect();
    observed.actual = devices(&links);
    add_addresses(netlink, &links, &mut observed)?;
    add_entries(netlink, &mut observed.actual)?;
    add_routes(netlink, &mut observed.actual)?;
    for node in nodes {
        if let Some(hop) = hop(netlink, *node)? {
            observed.actual.hops.insert(*node, hop);
        }
    }
    Ok(observed)
}

/// As [`observe`], but for what the networks run over only.
pub(super) fn observe_uplinks(netlink: &mut Netlink) -> io::Result<Observed> {
    let mut observed = Observed::default();
    let links = links(netlink)?;
    observed.actual = devices(&links);
    add_addresses(netlink, &links, &mut observed)?;
    Ok(observed)
}

fn add_routes(netlink: &mut Netlink, actual: &mut Actual) -> io::Result<()> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
        let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
        if let Some((to, route)) = our_route(&message) {
            actual.routes.entry(to).or_default().insert(route);
        }
    }
    Ok(())
}

/// A route that we made, from a message about one. The kernel may tell of others as well.
pub(super) fn our_route(message: &RouteMessage) -> Option<(Ipv4Net, Route)> {
    let header = &message.header;
    let ours = header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.address_family == AddressFamily::Inet;
    if !ours {
        return None;
    }
    let (mut to, mut source) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = *address,
            _ => {}
        }
    }
    let to = Ipv4Net::new(to, header.destination_prefix_length).ok()?;
    // One without a next hop leads to what is on this node.
    let here = || Hop { via: Ipv4Addr::UNSPECIFIED.into(), device: device(message).unwrap_or_default() };
    let hop = next_hop(message).unwrap_or_else(here);
    Some((to, Route { hop, source }))
}

fn next_hop(message: &RouteMessage) -> Option<Hop> {
    let via = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address))
        | RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Some(Hop { via: via?, device: device(message)? })
}

fn device(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Where packets for a node would go first; none if nowhere.
fn hop(netlink: &mut Netlink, node: IpAddr) -> io::Result<Option<Hop>> {
    Ok(way(netlink, node)?.and_then(|way| first_hop(&way, node)))
}

/// Where packets for `to` that take this way go first.
pub(super) fn first_hop(way: &RouteMessage, to: IpAddr) -> Option<Hop> {
    next_hop(way).or_else(|| Some(Hop { via: to, device: device(way)? }))
}

/// The route that packets for `to` would take; none if they would not leave, or not this machine.
pub(super) fn way(netlink: &mut Netlink, to: IpAddr) -> io::Result<Option<RouteMessage>> {
    match netlink.ask(&route_to(to)) {
        Ok(Some(RouteNetlinkMessage::NewRoute(answer))) if answer.header.kind == RouteType::Unicast => {
            Ok(Some(answer))
        }
        Ok(_) => Ok(None),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(
                    nix::libc::ENETUNREACH | nix::libc::EHOSTUNREACH | nix::libc::EACCES | nix::libc::EINVAL
                )
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn links(netlink: &mut Netlink) -> io::Result<Vec<LinkMessage>> {
    let answers = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let link = |message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(link).collect())
}

/// Our bridges and ports among the links: those with our names and of the right kind.
fn devices(links: &[LinkMessage]) -> Actual {
    let mut actual = Actual::default();
    for link in links.iter().map(Link) {
        let Some(name) = link.name() else { continue };
        match (vni_of(name, "wh"), vni_of(name, "wv"), link.kind()) {
            (Some(vni), _, Some(InfoKind::Bridge)) => {
                let mut bridge = link.bridge();
                bridge.answers_for_others = link.proxies_arp() && proxy_delay(name) == Some(0);
                actual.bridges.insert(vni, bridge);
            }
            (_, Some(vni), Some(InfoKind::Vxlan)) => drop(actual.ports.insert(vni, link.port())),
            _ => {}
        }
    }
    actual.forwarding =
        links.iter().filter(|link| Link(link).passes_on()).map(|link| link.header.index).collect();
    let ours: BTreeSet<u32> = actual.ports.values().map(|port| port.index).collect();
    for link in links.iter().map(Link).filter(|link| !ours.contains(&link.0.header.index)) {
        let Some(master) = link.master() else { continue };
        for bridge in actual.bridges.values_mut().filter(|bridge| bridge.index == master) {
            bridge.members.insert(link.0.header.index, link.mtu());
        }
    }
    actual
}

fn add_addresses(netlink: &mut Netlink, links: &[LinkMessage], observed: &mut Observed) -> io::Result<()> {
    let mtus: BTreeMap<u32, u32> = links.iter().map(|link| (link.header.index, Link(link).mtu())).collect();
    for answer in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        let Some(address) = address_of(&message) else { continue };
        if let Some(mtu) = mtus.get(&message.header.index) {
            observed.uplinks.insert(address, Uplink { device: message.header.index, mtu: *mtu });
        }
        let of_every_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        let mut bridges = observed.actual.bridges.values_mut();
        if let Some(bridge) = bridges.find(|bridge| bridge.index == message.header.index)
            && !of_every_link
        {
            bridge.addresses.insert((address, message.header.prefix_len));
        }
    }
    Ok(())
}

/// The machine's own address in a message about one.
pub(super) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    // On a point-to-point link only `Local` is this machine's own.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    local.or(other)
}

fn add_entries(netlink: &mut Netlink, actual: &mut Actual) -> io::Result<()> {
    let mut ports: BTreeMap<u32, &mut Port> =
        actual.ports.values_mut().map(|port| (port.index, port)).collect();
    if ports.is_empty() {
        return Ok(());
    }
    for family in [AddressFamily::Bridge, AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        for answer in netlink.dump(&RouteNetlinkMessage::GetNeighbour(request))? {
            let RouteNetlinkMessage::NewNeighbour(entry) = answer else { continue };
            if let Some(port) = ports.get_mut(&entry.header.ifindex) {
                add_entry(port, &entry);
            }
        }
    }
    Ok(())
}

/// An entry that directs packets.
pub(super) enum Entry {
    /// Which node answers for a hardware address.
    Forwarding(Mac, IpAddr),
    /// A hardware address that the bridge sends to our port.
    Switching(Mac),
    /// Whose hardware address an address is, for good; what is only known for a while counts as not known.
    Neighbour(IpAddr, Option<Mac>),
}

/// What a message about an entry says, if it is of a kind that we make.
pub(super) fn entry(message: &NeighbourMessage) -> Option<Entry> {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    });
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let (family, state) = (message.header.family, message.header.state);
    let own = message.header.flags.contains(NeighbourFlags::Own);
    match (family, mac, destination) {
        (AddressFamily::Bridge, Some(mac), Some(node)) if own => Some(Entry::Forwarding(mac, node)),
        // The port's own address is permanent; what was learned is neither.
        (AddressFamily::Bridge, Some(mac), _) if !own && state == NeighbourState::Noarp => {
            Some(Entry::Switching(mac))
        }
        (AddressFamily::Inet | AddressFamily::Inet6, mac, Some(address)) => {
            Some(Entry::Neighbour(address, mac.filter(|_| state == NeighbourState::Permanent)))
        }
        _ => None,
    }
}

fn add_entry(port: &mut Port, message: &NeighbourMessage) {
    match entry(message) {
        Some(Entry::Forwarding(mac, node)) => drop(port.forwarding.entry(mac).or_default().insert(node)),
        Some(Entry::Switching(mac)) => drop(port.switching.insert(mac)),
        Some(Entry::Neighbour(address, Some(mac))) => drop(port.neighbours.insert(address, mac)),
        Some(Entry::Neighbour(_, None)) | None => {}
    }
}

/// The kernel writes the destination of a forwarding entry in the node's family, whatever the entry's own is.
fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

/// A link, with the questions we have about one.
struct Link<'a>(&'a LinkMessage);

impl<'a> Link<'a> {
    fn find<T>(&self, question: impl FnMut(&'a LinkAttribute) -> Option<T>) -> Option<T> {
        self.0.attributes.iter().find_map(question)
    }

    fn name(&self) -> Option<&'a str> {
        self.find(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
    }

    fn mac(&self) -> Mac {
        let mac = self.find(|attribute| match attribute {
            LinkAttribute::Address(mac) => Mac::try_from(mac.as_slice()).ok(),
            _ => None,
        });
        mac.unwrap_or_default()
    }

    fn mtu(&self) -> u32 {
        let mtu = self.find(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.unwrap_or_default()
    }

    fn master(&self) -> Option<u32> {
        self.find(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        })
    }

    fn parent(&self) -> Option<u32> {
        self.find(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        })
    }

    fn up(&self) -> bool {
        self.0.header.flags.contains(LinkFlags::Up)
    }

    fn info(&self) -> &'a [LinkInfo] {
        let info = self.find(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
            _ => None,
        });
        info.unwrap_or_default()
    }

    fn kind(&self) -> Option<&'a InfoKind> {
        self.info().iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        })
    }

    fn bridge(&self) -> Bridge {
        Bridge {
            index: self.0.header.index,
            mac: self.mac(),
            mtu: self.mtu(),
            up: self.up(),
            addresses: BTreeSet::new(),
            without_ipv6: self.without_ipv6(),
            answers_for_others: false,
            members: BTreeMap::new(),
        }
    }

    /// What IPv4 is set to do on it: proxy ARP, and passing packets on.
    fn ipv4(&self) -> Option<(bool, bool)> {
        let families = self.find(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(families) => Some(families.as_slice()),
            _ => None,
        });
        let settings = families.unwrap_or_default().iter().find_map(|family| match family {
            AfSpecUnspec::Inet(settings) => Some(settings.as_slice()),
            _ => None,
        });
        settings.unwrap_or_default().iter().find_map(|setting| match setting {
            AfSpecInet::DevConf(settings) => Some((settings.proxy_arp != 0, settings.forwarding != 0)),
            _ => None,
        })
    }

    /// Of a bridge: whether iptables sees what its ports send to each other, whatever holds for all bridges.
    fn filtered(&self) -> Option<bool> {
        let data = self.info().iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Bridge(data)) => Some(data.as_slice()),
            _ => None,
        })?;
        data.iter().find_map(|info| match info {
            InfoBridge::NfCallIpTables(on) => Some(*on),
            _ => None,
        })
    }

    fn proxies_arp(&self) -> bool {
        self.ipv4().is_some_and(|(proxies, _)| proxies)
    }

    fn passes_on(&self) -> bool {
        self.ipv4().is_some_and(|(_, passes_on)| passes_on)
    }

    fn without_ipv6(&self) -> bool {
        let families = self.find(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(families) => Some(families.as_slice()),
            _ => None,
        });
        let settings = families.unwrap_or_default().iter().find_map(|family| match family {
            AfSpecUnspec::Inet6(settings) => Some(settings.as_slice()),
            _ => None,
        });
        settings.unwrap_or_default().iter().any(|setting| match setting {
            AfSpecInet6::DevConf(settings) => settings.disable_ipv6 != 0,
            _ => false,
        })
    }

    fn port(&self) -> Port {
        Port {
            index: self.0.header.index,
            mtu: self.mtu(),
            up: self.up(),
            master: self.master(),
            make: self.make(),
            without_ipv6: self.without_ipv6(),
            bridge_learns: self.bridge_learns(),
            forwarding: BTreeMap::new(),
            switching: BTreeSet::new(),
            neighbours: BTreeMap::new(),
        }
    }

    fn make(&self) -> PortMake {
        let mut make = PortMake { vni: 0, local: None, vxlan_port: 0, learning: false, proxy: false };
        let data = self.info().iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(data)) => Some(data.as_slice()),
            _ => None,
        });
        for info in data.unwrap_or_default() {
            match info {
                InfoVxlan::Id(vni) => make.vni = *vni,
                InfoVxlan::Local(address) => make.local = Some((*address).into()),
                InfoVxlan::Local6(address) => make.local = Some((*address).into()),
                InfoVxlan::Port(port) => make.vxlan_port = *port,
                InfoVxlan::Learning(learning) => make.learning = *learning,
                InfoVxlan::Proxy(proxy) => make.proxy = *proxy,
                _ => {}
            }
        }
        make
    }

    fn bridge_learns(&self) -> bool {
        self.info().iter().any(|info| match info {
            LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                data.iter().any(|info| matches!(info, InfoBridgePort::Learning(true)))
            }
            _ => false,
        })
    }
}

/// Carries a plan out as far as it can be: what fails for one network does not keep the others from theirs.
pub(super) fn carry_out(
    netlink: &mut Netlink,
    plan: &Plan,
    underlays: &Underlays,
    actual: &Actual,
) -> io::Result<Failures> {
    let mut failures = Failures::new();
    // A port in whose place routes come goes after they are there, and only then may packets be larger.
    let moves: BTreeSet<u32> =
        plan.iter().filter(|(_, it)| moves_onto_routes(it)).map(|(vni, _)| *vni).collect();
    let makes = |vni: u32, operation: &Operation| match operation {
        Operation::AddBridge { .. } | Operation::AddPort => true,
        Operation::RemovePort => !moves.contains(&vni),
        _ => false,
    };
    let mut indexes = Indexes::of(actual);
    run(netlink, plan, makes, |vni, operation| changes(vni, operation, underlays, &indexes), &mut failures)?;
    if all(plan).any(|(vni, operation)| makes(vni, operation)) {
        indexes = Indexes::of(&devices(&links(netlink)?));
    }
    let is_late = |vni: u32, operation: &Operation| match operation {
        Operation::Announce { .. } => true,
        Operation::SetMember { .. } => moves.contains(&vni),
        _ => false,
    };
    act(all(plan).filter(|(vni, operation)| !is_late(*vni, operation)), &mut failures);
    run(
        netlink,
        plan,
        |vni, operation| !makes(vni, operation),
        |vni, operation| changes(vni, operation, underlays, &indexes),
        &mut failures,
    )?;
    // Before the containers are entered, which may take long.
    let late = || all(plan).filter(|(vni, operation)| is_late(*vni, operation));
    act(late().filter(|(_, operation)| matches!(operation, Operation::Announce { .. })), &mut failures);
    act(late().filter(|(_, operation)| !matches!(operation, Operation::Announce { .. })), &mut failures);
    Ok(failures)
}

/// Whether routes come in the place of the network's port.
fn moves_onto_routes(operations: &[Operation]) -> bool {
    operations.contains(&Operation::RemovePort)
        && !operations.contains(&Operation::AddPort)
        && operations
            .iter()
            .any(|operation| matches!(operation, Operation::Route { .. } | Operation::AnswerForOthers))
}

/// Does what netlink has no message for.
fn act<'a>(operations: impl Iterator<Item = (u32, &'a Operation)>, failures: &mut Failures) {
    for (vni, operation) in operations {
        let done = match operation {
            Operation::EnableIpv6 => enable_ipv6(&bridge_name(vni)),
            Operation::EnablePortIpv6 => enable_ipv6(&port_name(vni)),
            Operation::AnswerForOthers => answer_at_once(&bridge_name(vni)),
            Operation::SetMember { index, mtu } => members::set_inside(*index, *mtu),
            Operation::Announce { addresses } => announce(&bridge_name(vni), addresses),
            _ => Ok(()),
        };
        if let Err(error) = done {
            failures.entry(vni).or_insert_with(|| (describe(vni, operation), error));
        }
    }
}

fn all(plan: &Plan) -> impl Iterator<Item = (u32, &Operation)> {
    plan.iter().flat_map(|(vni, operations)| operations.iter().map(move |operation| (*vni, operation)))
}

/// How long a bridge waits before it answers ARP for others, in hundredths of a second. The kernel's default is up to 0.8 s.
fn proxy_delay(bridge: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/neigh/{bridge}/proxy_delay")).ok()?.trim().parse().ok()
}

/// Others' ARP is answered without the wait that is meant for segments where somebody else may answer.
fn answer_at_once(bridge: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv4/neigh/{bridge}/proxy_delay"), "0")
}

/// On a node that gives new links no IPv6, ours are given it. There is no netlink message for that.
fn enable_ipv6(device: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0")
}

/// Removes the bridges of these networks.
pub(super) fn remove_bridges(
    netlink: &mut Netlink,
    vnis: &[u32],
    actual: &Actual,
) -> io::Result<Vec<io::Error>> {
    let indexes = vnis.iter().filter_map(|vni| actual.bridges.get(vni)).map(|bridge| bridge.index);
    let failed = netlink.apply(indexes.map(remove_link))?;
    Ok(failed.into_iter().map(|(_, error)| error).collect())
}

fn run<'a>(
    netlink: &mut Netlink,
    plan: &'a Plan,
    selected: impl Fn(u32, &Operation) -> bool,
    changes: impl Fn(u32, &Operation) -> Vec<Change>,
    failures: &mut Failures,
) -> io::Result<()> {
    let operations = all(plan);
    let mut origins: Vec<(u32, &'a Operation)> = Vec::new();
    let mut all = Vec::new();
    for (vni, operation) in operations.filter(|(vni, operation)| selected(*vni, operation)) {
        for change in changes(vni, operation) {
            origins.push((vni, operation));
            all.push(change);
        }
    }
    for (position, error) in netlink.apply(all)? {
        let (vni, operation) = origins[position];
        if !is_done(operation, &error) {
            failures.entry(vni).or_insert_with(|| (describe(vni, operation), error));
        }
    }
    Ok(())
}

/// Whether what should be gone is gone already.
fn is_done(operation: &Operation, error: &io::Error) -> bool {
    let gone = matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ESRCH | nix::libc::EADDRNOTAVAIL)
    );
    match operation {
        Operation::RemoveAddress { .. }
        | Operation::RemovePort
        | Operation::StopForwarding { .. }
        | Operation::StopSwitching { .. }
        | Operation::StopResolving { .. }
        // A container that ended meanwhile.
        | Operation::SetMember { .. }
        | Operation::StopRoute { .. } => gone,
        Operation::AddBridge { .. }
        | Operation::SetBridge { .. }
        | Operation::EnableIpv6
        | Operation::EnablePortIpv6
        | Operation::AddAddress { .. }
        | Operation::AddPort
        | Operation::SetPort { .. }
        | Operation::Forward { .. }
        | Operation::Switch { .. }
        | Operation::Resolve { .. }
        | Operation::AnswerForOthers
        | Operation::PassOn { .. }
        | Operation::Announce { .. }
        | Operation::Route { .. } => false,
    }
}

fn describe(vni: u32, operation: &Operation) -> String {
    let (bridge, port) = (bridge_name(vni), port_name(vni));
    match operation {
        Operation::AddBridge { .. } => format!("cannot make the bridge {bridge}"),
        Operation::SetBridge { .. } => format!("cannot set up the bridge {bridge}"),
        Operation::EnableIpv6 => format!("cannot switch on IPv6 on {bridge}"),
        Operation::EnablePortIpv6 => format!("cannot switch on IPv6 on {port}"),
        Operation::AddAddress { address, prefix } => format!("cannot give {bridge} {address}/{prefix}"),
        Operation::RemoveAddress { address, prefix } => {
            format!("cannot take {address}/{prefix} from {bridge}")
        }
        Operation::RemovePort => format!("cannot remove the VXLAN port {port}"),
        Operation::AddPort => format!("cannot make the VXLAN port {port}"),
        Operation::SetPort { .. } => format!("cannot set up the VXLAN port {port}"),
        Operation::StopForwarding { .. } | Operation::StopSwitching { .. } => {
            format!("cannot remove a forwarding entry of {port}")
        }
        Operation::Forward { .. } | Operation::Switch { .. } => {
            format!("cannot add a forwarding entry to {port}")
        }
        Operation::StopResolving { .. } => format!("cannot remove a neighbour of {port}"),
        Operation::Resolve { .. } => format!("cannot add a neighbour to {port}"),
        Operation::SetMember { mtu, .. } => {
            format!("cannot tell a container of {bridge} that packets have {mtu} bytes")
        }
        Operation::AnswerForOthers => format!("cannot switch on proxy ARP on {bridge}"),
        Operation::PassOn { .. } => "cannot switch on IP forwarding of this node".to_owned(),
        Operation::Announce { .. } => {
            format!("cannot tell the containers of {bridge} which hardware addresses others have")
        }
        Operation::StopRoute { to, .. } => format!("cannot remove the route to {to}"),
        Operation::Route { to, route } => {
            format!("cannot make the route to {to} by way of {}", route.hop.via)
        }
    }
}

/// The kernel's numbers of the devices. A device that could not be made has none: 0 is refused by the kernel.
struct Indexes {
    bridges: BTreeMap<u32, u32>,
    ports: BTreeMap<u32, u32>,
}

impl Indexes {
    fn of(actual: &Actual) -> Self {
        Self {
            bridges: actual.bridges.iter().map(|(vni, bridge)| (*vni, bridge.index)).collect(),
            ports: actual.ports.iter().map(|(vni, port)| (*vni, port.index)).collect(),
        }
    }

    fn bridge(&self, vni: u32) -> u32 {
        self.bridges.get(&vni).copied().unwrap_or_default()
    }

    fn port(&self, vni: u32) -> u32 {
        self.ports.get(&vni).copied().unwrap_or_default()
    }
}

const MAKE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const ENSURE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

fn changes(vni: u32, operation: &Operation, underlays: &Underlays, indexes: &Indexes) -> Vec<Change> {
    let (bridge, port) = (indexes.bridge(vni), indexes.port(vni));
    match operation {
        Operation::AddBridge { mac, mtu } => {
            let link = LinkBridge::new(&bridge_name(vni)).address(mac.to_vec()).mtu(*mtu).up().build();
            vec![Change { message: RouteNetlinkMessage::NewLink(link), flags: MAKE }]
        }
        Operation::SetBridge { mac, mtu } => {
            vec![set_link(LinkUnspec::new_with_index(bridge).address(mac.to_vec()).mtu(*mtu).up())]
        }
        Operation::EnableIpv6 | Operation::EnablePortIpv6 | Operation::Announce { .. } => Vec::new(),
        Operation::AddAddress { address, prefix } => {
            let message = RouteNetlinkMessage::NewAddress(on_bridge(bridge, *address, *prefix));
            vec![Change { message, flags: ENSURE }]
        }
        Operation::RemoveAddress { address, prefix } => {
            let message = RouteNetlinkMessage::DelAddress(on_bridge(bridge, *address, *prefix));
            vec![Change { message, flags: 0 }]
        }
        Operation::RemovePort => vec![remove_link(port)],
        Operation::AddPort => {
            underlays.get(&vni).map(|underlay| add_port(vni, underlay)).into_iter().collect()
        }
        Operation::SetPort { mtu } => vec![
            set_link(LinkUnspec::new_with_index(port).controller(bridge).mtu(*mtu)),
            bridge_does_not_learn(port),
            set_link(LinkUnspec::new_with_index(port).up()),
        ],
        Operation::StopForwarding { mac, node } => vec![del(forwarding(port, *mac, *node))],
        Operation::StopSwitching { mac } => vec![del(switching(port, *mac))],
        Operation::StopResolving { address } => vec![del(neighbour(port, *address))],
        Operation::Forward { mac, node } => vec![ensure(forwarding(port, *mac, *node))],
        Operation::Switch { mac } => vec![ensure(switching(port, *mac))],
        Operation::Resolve { address, mac } => {
            let mut entry = neighbour(port, *address);
            entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            vec![ensure(entry)]
        }
        Operation::SetMember { index, mtu } => vec![set_link(LinkUnspec::new_with_index(*index).mtu(*mtu))],
        Operation::AnswerForOthers => {
            vec![set_ipv4(bridge, PROXY_ARP), set_ipv4(bridge, FORWARDING)]
        }
        Operation::PassOn { device } => vec![set_ipv4(*device, FORWARDING)],
        Operation::StopRoute { to, route } => {
            vec![Change { message: RouteNetlinkMessage::DelRoute(route_message(*to, route)), flags: 0 }]
        }
        Operation::Route { to, route } => {
            vec![Change { message: RouteNetlinkMessage::NewRoute(route_message(*to, route)), flags: ENSURE }]
        }
    }
}

/// Settings of IPv4 for one interface, by the numbers that netlink has for them.
const FORWARDING: u16 = 1;
const PROXY_ARP: u16 = 3;

/// Switches a setting of IPv4 on for one interface. The kernel takes such settings one by one.
fn set_ipv4(device: u32, setting: u16) -> Change {
    let mut bytes = Vec::with_capacity(8);
    bytes.extend(8_u16.to_ne_bytes());
    bytes.extend(setting.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    let settings = AfSpecInet::Other(DefaultNla::new(1 | NLA_F_NESTED, bytes));
    let mut link = LinkMessage::default();
    link.header.index = device;
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])])];
    Change { message: RouteNetlinkMessage::SetLink(link), flags: 0 }
}

fn route_message(to: Ipv4Net, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    let via = match route.hop.via {
        IpAddr::V4(address) if address.is_unspecified() => None,
        IpAddr::V4(address) => Some(RouteAttribute::Gateway(RouteAddress::Inet(address))),
        IpAddr::V6(address) => Some(RouteAttribute::Via(RouteVia::Inet6(address))),
    };
    if via.is_none() {
        message.header.scope = RouteScope::Link;
    }
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(to.network())),
        RouteAttribute::PrefSource(RouteAddress::Inet(route.source)),
        RouteAttribute::Oif(route.hop.device),
    ];
    message.attributes.extend(via);
    message
}

fn add_port(vni: u32, underlay: &Underlay) -> Change {
    let link = LinkVxlan::new(&port_name(vni), vni).port(underlay.vxlan_port).learning(false).proxy(true);
    let link = match underlay.node {
        IpAddr::V4(address) => link.local(address),
        IpAddr::V6(address) => link.local6(address),
    };
    Change { message: RouteNetlinkMessage::NewLink(link.mtu(underlay.mtu).build()), flags: MAKE }
}

fn set_link(link: LinkMessageBuilder<LinkUnspec>) -> Change {
    Change { message: RouteNetlinkMessage::SetLink(link.build()), flags: 0 }
}

/// Only `RTM_NEWLINK` reads what a bridge keeps of its port; without the flag to create, it changes.
fn bridge_does_not_learn(port: u32) -> Change {
    let link = LinkBridgePort::new(port).learning(false).build();
    Change { message: RouteNetlinkMessage::NewLink(link), flags: 0 }
}

fn remove_link(index: u32) -> Change {
    let mut link = LinkMessage::default();
    link.header.index = index;
    Change { message: RouteNetlinkMessage::DelLink(link), flags: 0 }
}

fn on_bridge(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    match address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix).build()
        }
        IpAddr::V6(address) => {
            let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(address, prefix);
            let mut message = builder.build();
            // Nobody else has it: it can be used at once, without asking around for a second.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
        }
    }
}

/// Which node answers for a hardware address; kept by the VXLAN device.
fn forwarding(port: u32, mac: Mac, node: IpAddr) -> NeighbourMessage {
    let mut entry = new_entry(port, AddressFamily::Bridge, NeighbourState::Permanent);
    entry.header.flags = NeighbourFlags::Own;
    entry.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::from(node)),
    ];
    entry
}

/// Which port of the bridge a hardware address is behind; kept by the bridge.
fn switching(port: u32, mac: Mac) -> NeighbourMessage {
    let mut entry = new_entry(port, AddressFamily::Bridge, NeighbourState::Noarp);
    entry.header.flags = NeighbourFlags::Controller;
    entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    entry
}

/// An answer to ARP or neighbour discovery; kept with the VXLAN device.
fn neighbour(port: u32, address: IpAddr) -> NeighbourMessage {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut entry = new_entry(port, family, NeighbourState::Permanent);
    entry.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::from(address))];
    entry
}

fn new_entry(port: u32, family: AddressFamily, state: NeighbourState) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = family;
    entry.header.ifindex = port;
    entry.header.state = state;
    entry
}

fn ensure(entry: NeighbourMessage) -> Change {
    Change { message: RouteNetlinkMessage::NewNeighbour(entry), flags: ENSURE }
}

fn del(entry: NeighbourMessage) -> Change {
    Change { message: RouteNetlinkMessage::DelNeighbour(entry), flags: 0 }
}
