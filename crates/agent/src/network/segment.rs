//! Networks on the physical segment: containers are machines of it, by macvlan devices that Docker makes.
//!
//! - A macvlan device and its parent do not hear each other. So the node has a device of its own on the parent, the shim, with the
//!   node's address on the network: there its containers ask for names, and from there it reaches them.
//! - The shim's routes lead to the containers of this node one by one; everything else of the segment is reached as it was before.
//! - A parent such as `eth0.100` that is not there is made: VLAN 100 of `eth0`. One that we made stays when the network goes, as others
//!   may use it by then.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
};

use rtnetlink::{
    AddressMessageBuilder, LinkMacVlan, LinkUnspec, LinkVlan,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkMessage, MacVlanMode},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
        },
    },
};
use wharf_model::mac_for;

use super::{
    kernel::Seen,
    netlink::{Change, Netlink},
    plan::{Mac, vni_of},
};

/// The number of the routes to containers of this node: not that of routes to other nodes.
const ROUTE_PROTOCOL: u8 = 86;

/// The shim of the network with this identifier.
pub(super) fn shim_name(vni: u32) -> String {
    format!("wm{vni:x}")
}

/// A network on the segment as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WantedSegment {
    /// The interface whose segment it is.
    pub(super) parent: String,
    /// The node's address.
    pub(super) gateway: Ipv4Addr,
    /// The addresses of this node's containers.
    pub(super) local: BTreeSet<Ipv4Addr>,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Actual {
    /// Links by their names.
    pub(super) links: BTreeMap<String, u32>,
    pub(super) shims: BTreeMap<u32, Shim>,
    /// To which containers the shims' routes lead, by the shims' numbers.
    pub(super) routes: BTreeSet<(u32, Ipv4Addr)>,
}

/// A shim that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shim {
    pub(super) index: u32,
    pub(super) parent: Option<u32>,
    pub(super) mac: Mac,
    pub(super) up: bool,
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// One change to the kernel. Devices are named, as some are only made on the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    RemoveShim,
    AddVlan { parent: String, of: String, id: u16 },
    AddShim { parent: String, mac: Mac },
    RaiseShim,
    RemoveAddress { address: Ipv4Addr },
    AddAddress { address: Ipv4Addr },
    RemoveRoute { to: Ipv4Addr },
    AddRoute { to: Ipv4Addr, source: Ipv4Addr },
}

/// What cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoParent {
    #[error("this node has no interface `{0}`, which the network names as its parent")]
    Missing(String),
}

/// The interface and the number in the name of a VLAN such as `eth0.100`.
fn vlan_of(name: &str) -> Option<(&str, u16)> {
    let (of, id) = name.rsplit_once('.')?;
    let id = id.parse().ok().filter(|id| (1..=4094).contains(id))?;
    (!of.is_empty()).then_some((of, id))
}

/// The steps after which the shim of a network is as wanted.
pub(super) fn plan(vni: u32, wanted: Option<&WantedSegment>, actual: &Actual) -> Result<Vec<Step>, NoParent> {
    let there = actual.shims.get(&vni);
    let Some(wanted) = wanted else {
        return Ok(there.map(|_| Step::RemoveShim).into_iter().collect());
    };
    let mut steps = Vec::new();
    let parent = actual.links.get(&wanted.parent).copied();
    if parent.is_none() {
        let vlan = vlan_of(&wanted.parent).filter(|(of, _)| actual.links.contains_key(*of));
        let Some((of, id)) = vlan else { return Err(NoParent::Missing(wanted.parent.clone())) };
        steps.push(Step::AddVlan { parent: wanted.parent.clone(), of: of.to_owned(), id });
    }
    let mac = mac_for(wanted.gateway);
    let usable = there.filter(|shim| shim.parent == parent && parent.is_some() && shim.mac == mac);
    if there.is_some() && usable.is_none() {
        steps.push(Step::RemoveShim);
    }
    if usable.is_none() {
        steps.push(Step::AddShim { parent: wanted.parent.clone(), mac });
    }
    if !usable.is_some_and(|shim| shim.up) {
        steps.push(Step::RaiseShim);
    }
    let others = usable.into_iter().flat_map(|shim| &shim.addresses);
    for address in others.filter(|address| **address != wanted.gateway) {
        if let IpAddr::V4(address) = address {
            steps.push(Step::RemoveAddress { address: *address });
        }
    }
    if !usable.is_some_and(|shim| shim.addresses.contains(&wanted.gateway.into())) {
        steps.push(Step::AddAddress { address: wanted.gateway });
    }
    // Routes go with the device, and with its being down.
    let index = usable.filter(|shim| shim.up).map(|shim| shim.index);
    let routes: BTreeSet<Ipv4Addr> =
        actual.routes.iter().filter(|(device, _)| Some(*device) == index).map(|(_, to)| *to).collect();
    steps.extend(routes.difference(&wanted.local).map(|to| Step::RemoveRoute { to: *to }));
    let missing = wanted.local.difference(&routes);
    steps.extend(missing.map(|to| Step::AddRoute { to: *to, source: wanted.gateway }));
    Ok(steps)
}

/// What is there, of what was read already and the routes.
pub(super) fn observe(
    netlink: &mut Netlink,
    links: &BTreeMap<u32, Seen>,
    addresses: impl Iterator<Item = (IpAddr, u32)>,
) -> io::Result<Actual> {
    let mut actual = Actual::default();
    for (index, seen) in links {
        let Some(name) = &seen.name else { continue };
        actual.links.insert(name.clone(), *index);
        if let Some(vni) = vni_of(name, "wm") {
            let (parent, mac, up) = (seen.parent, seen.mac, seen.up);
            actual.shims.insert(vni, Shim { index: *index, parent, mac, up, addresses: BTreeSet::new() });
        }
    }
    if actual.shims.is_empty() {
        return Ok(actual);
    }
    for (address, device) in addresses {
        let shim = actual.shims.values_mut().find(|shim| shim.index == device);
        if let (Some(shim), IpAddr::V4(_)) = (shim, address) {
            shim.addresses.insert(address);
        }
    }
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    for answer in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
        let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
        if message.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL) {
            continue;
        }
        let (mut to, mut device) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(*address),
                RouteAttribute::Oif(index) => device = Some(*index),
                _ => {}
            }
        }
        actual.routes.extend(device.zip(to));
    }
    Ok(actual)
}

/// Does a step; the devices are looked up by name.
pub(super) fn carry_out(netlink: &mut Netlink, vni: u32, step: &Step) -> io::Result<()> {
    let shim = shim_name(vni);
    let new = NLM_F_CREATE | NLM_F_EXCL;
    let change = match step {
        Step::RemoveShim => {
            let mut link = LinkMessage::default();
            link.header.index = index(netlink, &shim)?;
            Change { message: RouteNetlinkMessage::DelLink(link), flags: 0 }
        }
        Step::AddVlan { parent, of, id } => {
            let link = LinkVlan::new(parent, index(netlink, of)?, *id).up().build();
            Change { message: RouteNetlinkMessage::NewLink(link), flags: new }
        }
        Step::AddShim { parent, mac } => {
            let link = LinkMacVlan::new(&shim, index(netlink, parent)?, MacVlanMode::Bridge);
            let link = link.address(mac.to_vec()).build();
            Change { message: RouteNetlinkMessage::NewLink(link), flags: new }
        }
        Step::RaiseShim => {
            let link = LinkUnspec::new_with_index(index(netlink, &shim)?).up().build();
            Change { message: RouteNetlinkMessage::SetLink(link), flags: 0 }
        }
        Step::AddAddress { address } | Step::RemoveAddress { address } => {
            let device = index(netlink, &shim)?;
            // The segment's other addresses are not behind it.
            let message =
                AddressMessageBuilder::<Ipv4Addr>::new().index(device).address(*address, 32).build();
            match step {
                Step::AddAddress { .. } => Change {
                    message: RouteNetlinkMessage::NewAddress(message),
                    flags: NLM_F_CREATE | NLM_F_REPLACE,
                },
                _ => Change { message: RouteNetlinkMessage::DelAddress(message), flags: 0 },
            }
        }
        Step::AddRoute { to, source } => {
            let mut message = route(*to, index(netlink, &shim)?);
            message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(*source)));
            Change { message: RouteNetlinkMessage::NewRoute(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
        }
        Step::RemoveRoute { to } => {
            Change { message: RouteNetlinkMessage::DelRoute(route(*to, index(netlink, &shim)?)), flags: 0 }
        }
    };
    netlink.apply([change])?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// Why a step failed, in words for people.
pub(super) fn describe(vni: u32, step: &Step, error: &io::Error) -> String {
    let shim = shim_name(vni);
    match step {
        Step::AddVlan { parent, .. } if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => format!(
            "cannot make the VLAN interface `{parent}`: this node's kernel has no VLANs (module 8021q); load it, or make the interface"
        ),
        Step::AddShim { .. } if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            "this node's kernel has no macvlan: load the module".to_owned()
        }
        Step::AddVlan { parent, .. } => format!("cannot make the VLAN interface `{parent}`: {error}"),
        Step::AddShim { parent, .. } => format!("cannot make {shim} on `{parent}`: {error}"),
        Step::RemoveShim => format!("cannot remove {shim}: {error}"),
        Step::RaiseShim | Step::AddAddress { .. } | Step::RemoveAddress { .. } => {
            format!("cannot set up {shim}: {error}")
        }
        Step::AddRoute { to, .. } | Step::RemoveRoute { to } => {
            format!("cannot change the route to {to} on {shim}: {error}")
        }
    }
}

fn route(to: Ipv4Addr, device: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet(to)), RouteAttribute::Oif(device)];
    message
}

fn index(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let question = LinkUnspec::new_with_name(name).build();
    match netlink.ask(&RouteNetlinkMessage::GetLink(question))? {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
        _ => Err(io::Error::from_raw_os_error(nix::libc::ENODEV)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(parent: &str) -> WantedSegment {
        let local = BTreeSet::from([Ipv4Addr::new(192, 0, 2, 50)]);
        WantedSegment { parent: parent.to_owned(), gateway: Ipv4Addr::new(192, 0, 2, 200), local }
    }

    #[test]
    fn a_vlan_that_is_not_there_is_made_if_its_interface_is_and_a_missing_parent_is_named() {
        let actual = Actual { links: BTreeMap::from([("eth0".to_owned(), 2)]), ..Actual::default() };
        let steps = plan(1, Some(&wanted("eth0.100")), &actual).unwrap();
        assert_eq!(steps[0], Step::AddVlan { parent: "eth0.100".into(), of: "eth0".into(), id: 100 });
        for missing in ["eth1", "eth1.100", "eth0.5000", "eth0.x"] {
            let error = plan(1, Some(&wanted(missing)), &actual).unwrap_err();
            assert_eq!(error, NoParent::Missing(missing.to_owned()));
        }
    }

    #[test]
    fn what_is_right_is_not_touched_and_a_shim_of_another_parent_is_made_anew() {
        let want = wanted("eth0");
        let shim = Shim {
            index: 9,
            parent: Some(2),
            mac: mac_for(want.gateway),
            up: true,
            addresses: BTreeSet::from([want.gateway.into()]),
        };
        let links = BTreeMap::from([("eth0".to_owned(), 2), ("wm1".to_owned(), 9)]);
        let routes = want.local.iter().map(|to| (9, *to)).collect();
        let actual = Actual { links, shims: BTreeMap::from([(1, shim.clone())]), routes };
        assert_eq!(plan(1, Some(&want), &actual), Ok(Vec::new()));
        assert_eq!(plan(1, None, &actual), Ok(vec![Step::RemoveShim]));
        let other = Actual { shims: BTreeMap::from([(1, Shim { parent: Some(3), ..shim })]), ..actual };
        let steps = plan(1, Some(&want), &other).unwrap();
        assert_eq!(steps.len(), 5, "removed, made, raised, address and route: {steps:?}");
    }
}
