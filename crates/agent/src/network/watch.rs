//! Hears from the kernel when others change what is ours, so that it is mended at once.
//!
//! - What the kernel tells is never believed, only taken as a reason to look. What it tells of our own changes, and of what is none of
//!   our business, is mostly no reason.
//! - Messages may be lost when there are many; that is told as well, and is a reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::{RouteNetlinkMessage, address::AddressMessage, link::LinkMessage};
use tokio::io::unix::AsyncFd;
use wharf_model::Backend;

use super::{
    kernel::{self, Entry, Seen},
    netlink::{Event, Events},
    plan::{Hop, Mac, Route, WantedNetwork, vni_of},
};

/// What concerns us, as of the last pass.
#[derive(Debug, Default)]
pub(super) struct Concern {
    /// By VXLAN identifier.
    pub(super) wanted: Arc<BTreeMap<u32, WantedNetwork>>,
    /// Which node has each hardware address that is elsewhere, by network.
    pub(super) elsewhere: Arc<BTreeMap<u32, BTreeMap<Mac, IpAddr>>>,
    /// Where packets for other nodes go first.
    pub(super) hops: BTreeMap<IpAddr, Hop>,
    /// Our VXLAN ports and bridges by the kernel's numbers: which network's they are.
    pub(super) ports: BTreeMap<u32, u32>,
    pub(super) bridges: BTreeMap<u32, u32>,
    /// How links looked: ours, containers' ends on our bridges, and those that packets leave by.
    pub(super) links: BTreeMap<u32, Seen>,
    /// The node's own addresses between nodes.
    pub(super) addresses: BTreeSet<IpAddr>,
}

impl Concern {
    /// Whether this is a reason to look.
    pub(super) fn is_touched_by(&self, event: &Event) -> bool {
        let message = match event {
            Event::Lost => return true,
            Event::Setting(device) => return self.links.contains_key(device),
            Event::Message(message) => message,
        };
        match message.as_ref() {
            RouteNetlinkMessage::NewNeighbour(entry) => {
                kernel::entry(entry).is_some_and(|it| self.is_wrong(entry.header.ifindex, &it))
            }
            RouteNetlinkMessage::DelNeighbour(entry) => {
                kernel::entry(entry).is_some_and(|it| self.is_missed(entry.header.ifindex, &it))
            }
            RouteNetlinkMessage::NewLink(link) => self.is_touched_by_link(link),
            // The message of a link that leaves a bridge looks like that of one that goes: only ours and uplinks count.
            RouteNetlinkMessage::DelLink(link) => {
                self.links.get(&link.header.index).is_some_and(|seen| seen.master.is_none() || seen.is_ours())
            }
            RouteNetlinkMessage::NewAddress(message) => self.wants_address(message) == Some(false),
            RouteNetlinkMessage::DelAddress(message) => self.wants_address(message) == Some(true),
            RouteNetlinkMessage::NewRoute(message) => match kernel::our_route(message) {
                Some((to, route)) => self.route(to) != Some(route),
                None => self.has_routes(),
            },
            RouteNetlinkMessage::DelRoute(message) => match kernel::our_route(message) {
                Some((to, _)) => self.route(to).is_some(),
                None => self.has_routes(),
            },
            _ => false,
        }
    }

    fn node(&self, vni: u32, mac: Mac) -> Option<IpAddr> {
        self.elsewhere.get(&vni)?.get(&mac).copied()
    }

    fn neighbour(&self, vni: u32, address: IpAddr) -> Option<Mac> {
        self.wanted.get(&vni)?.neighbour(address)
    }

    /// Whether an entry of this device is not as it should be.
    fn is_wrong(&self, device: u32, entry: &Entry) -> bool {
        let Some(vni) = self.ports.get(&device) else { return false };
        match entry {
            Entry::Forwarding(mac, to) => self.node(*vni, *mac) != Some(*to),
            Entry::Switching(mac) => self.node(*vni, *mac).is_none(),
            Entry::Neighbour(address, mac) => self.neighbour(*vni, *address) != *mac,
        }
    }

    /// Whether an entry of this device should not have gone.
    fn is_missed(&self, device: u32, entry: &Entry) -> bool {
        let Some(vni) = self.ports.get(&device) else { return false };
        match entry {
            Entry::Forwarding(mac, to) => self.node(*vni, *mac) == Some(*to),
            Entry::Switching(mac) => self.node(*vni, *mac).is_some(),
            Entry::Neighbour(address, _) => self.neighbour(*vni, *address).is_some(),
        }
    }

    fn is_touched_by_link(&self, link: &LinkMessage) -> bool {
        let seen = Seen::of(link);
        if let Some(before) = self.links.get(&link.header.index) {
            return *before != seen;
        }
        // One that we did not know: a device with a name of ours, or a container with packets of another size.
        let bridge = seen.master.and_then(|master| self.links.get(&master)).filter(|bridge| bridge.is_ours());
        seen.is_ours() || bridge.is_some_and(|bridge| bridge.mtu != seen.mtu)
    }

    fn wants_address(&self, message: &AddressMessage) -> Option<bool> {
        let address = kernel::address_of(message)?;
        if self.addresses.contains(&address) {
            // Its coming is as good a reason as its going.
            return Some(self.links.contains_key(&message.header.index));
        }
        let vni = self.bridges.get(&message.header.index)?;
        let network = self.wanted.get(vni)?;
        Some(network.bridge_addresses().contains(&(address, message.header.prefix_len)))
    }

    /// Whether any network is routed, and needs rules.
    pub(super) fn has_routes(&self) -> bool {
        self.wanted.values().any(|network| network.backend == Backend::Routed)
    }

    fn route(&self, to: Ipv4Net) -> Option<Route> {
        self.wanted.iter().find_map(|(vni, network)| {
            let bridge = self.bridges.iter().find(|(_, of)| *of == vni).map(|(index, _)| *index);
            network.routes(&self.hops, bridge).get(&to).copied()
        })
    }
}

impl Seen {
    /// Whether it has a name that we give.
    pub(super) fn is_ours(&self) -> bool {
        let ours = |name: &str| ["wh", "wv", "wm"].iter().any(|prefix| vni_of(name, prefix).is_some());
        self.name.as_deref().is_some_and(ours)
    }
}

/// Something changed that concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Links, addresses, routes or entries.
    Tables,
    /// Rules of nftables, whoever's.
    Rules,
}

/// Listens to the kernel.
pub(super) struct Watch {
    tables: Events,
    rules: Events,
}

impl Watch {
    /// Of the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { tables: Events::of_tables()?, rules: Events::of_rules()? })
    }

    /// Only where a runtime is there to wait with.
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe; the sockets own their descriptors as long as they live"
    )]
    pub(super) fn listen(self) -> io::Result<Listening> {
        Ok(Listening { tables: AsyncFd::new(self.tables)?, rules: AsyncFd::new(self.rules)? })
    }
}

/// Listens to the kernel, and can be waited for.
pub(super) struct Listening {
    tables: AsyncFd<Events>,
    rules: AsyncFd<Events>,
}

impl Listening {
    /// Waits until something changes that `concerns` us. Cancel-safe: what was read already was no reason, or is answered.
    pub(super) async fn next(&mut self, concerns: impl Fn(&Event) -> bool) -> io::Result<Change> {
        loop {
            tokio::select! {
                // Both cancel-safe: readiness stays until it is read.
                ready = self.tables.readable_mut() => {
                    let mut ready = ready?;
                    let mut touched = false;
                    // All that is there counts once.
                    let read = ready.get_inner_mut().read(|event| touched |= concerns(&event));
                    ready.clear_ready();
                    read?;
                    if touched {
                        return Ok(Change::Tables);
                    }
                }
                ready = self.rules.readable_mut() => {
                    let mut ready = ready?;
                    let read = ready.get_inner_mut().read(|_| {});
                    ready.clear_ready();
                    read?;
                    return Ok(Change::Rules);
                }
            }
        }
    }
}
