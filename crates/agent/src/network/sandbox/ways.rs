//! Where marked packets go: one rule and one table of routes for each mark, kept exact in a network namespace.
//!
//! - A table has its mark's number. Rules and routes of ours are known by their protocol number and the rules' priority; others are
//!   never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::Ipv6Net;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::network::netlink::{Change, Netlink};

/// By mark.
pub(super) type Ways = BTreeMap<u32, Hop>;

/// Where packets with a mark go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hop {
    /// To this neighbour.
    Via(IpAddr),
    /// To a socket of this namespace, whatever their destination.
    Here,
}

/// Of addresses, and of what is programmed for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

/// After the rule for local addresses and before that of the main table.
const PRIORITY: u32 = 21_333;
/// Says that a rule or a route is ours.
const PROTOCOL: u8 = 219;
/// `NLM_F_CREATE | NLM_F_REPLACE`, and for rules `NLM_F_CREATE | NLM_F_EXCL`.
const REPLACE: u16 = 0x400 | 0x100;
const CREATE: u16 = 0x400 | 0x200;
/// Every namespace's loopback interface.
const LOOPBACK: u32 = 1;

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Actual {
    /// Mark and table of each rule of ours, as often as it is there.
    rules: Vec<(u32, u32)>,
    /// Of the tables of ours.
    routes: BTreeSet<(u32, Hop)>,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    RemoveRule(u32, u32),
    RemoveRoute(u32, Hop),
    AddRoute(u32, Hop),
    AddRule(u32),
}

/// Makes the ways of a family in the calling thread's namespace those that are wanted; answers how many changes that took.
pub(super) fn ensure(family: Family, wanted: &Ways) -> io::Result<usize> {
    let mut netlink = Netlink::open()?;
    let operations = plan(wanted, &observe(&mut netlink, family)?);
    let failed = netlink.apply(operations.iter().map(|operation| change(family, *operation)))?;
    match failed.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(operations.len()),
    }
}

fn plan(wanted: &Ways, actual: &Actual) -> Vec<Operation> {
    let mut operations = Vec::new();
    let mut kept = BTreeSet::new();
    for (mark, table) in &actual.rules {
        if mark != table || !wanted.contains_key(mark) || !kept.insert(*mark) {
            operations.push(Operation::RemoveRule(*mark, *table));
        }
    }
    let unwanted = actual.routes.iter().filter(|(mark, hop)| wanted.get(mark) != Some(hop));
    operations.extend(unwanted.map(|(mark, hop)| Operation::RemoveRoute(*mark, *hop)));
    for (mark, hop) in wanted {
        if !actual.routes.contains(&(*mark, *hop)) {
            operations.push(Operation::AddRoute(*mark, *hop));
        }
        if !kept.contains(mark) {
            operations.push(Operation::AddRule(*mark));
        }
    }
    operations
}

fn observe(netlink: &mut Netlink, family: Family) -> io::Result<Actual> {
    let mut actual = Actual::default();
    let mut request = RuleMessage::default();
    request.header.family = family.into();
    for message in netlink.dump(&RouteNetlinkMessage::GetRule(request))? {
        if let RouteNetlinkMessage::NewRule(rule) = message {
            actual.rules.extend(rule_of(&rule));
        }
    }
    let mut request = RouteMessage::default();
    request.header.address_family = family.into();
    for message in netlink.dump(&RouteNetlinkMessage::GetRoute(request))? {
        if let RouteNetlinkMessage::NewRoute(route) = message {
            actual.routes.extend(route_of(&route));
        }
    }
    Ok(actual)
}

fn rule_of(rule: &RuleMessage) -> Option<(u32, u32)> {
    let (mut mark, mut table, mut priority, mut ours) = (0, 0, 0, false);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(number) => mark = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    (ours && priority == PRIORITY).then_some((mark, table))
}

fn route_of(route: &RouteMessage) -> Option<(u32, Hop)> {
    if route.header.protocol != RouteProtocol::Other(PROTOCOL) || route.header.destination_prefix_length != 0
    {
        return None;
    }
    let (mut table, mut via) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => via = Some((*address).into()),
            _ => {}
        }
    }
    match (route.header.kind, via) {
        (RouteType::Local, _) => Some((table, Hop::Here)),
        (_, Some(via)) => Some((table, Hop::Via(via))),
        (_, None) => None,
    }
}

fn change(family: Family, operation: Operation) -> Change {
    match operation {
        Operation::AddRule(mark) => {
            Change { message: RouteNetlinkMessage::NewRule(rule(family, mark, mark)), flags: CREATE }
        }
        Operation::RemoveRule(mark, table) => {
            Change { message: RouteNetlinkMessage::DelRule(rule(family, mark, table)), flags: 0 }
        }
        Operation::AddRoute(mark, hop) => {
            Change { message: RouteNetlinkMessage::NewRoute(route(family, mark, hop)), flags: REPLACE }
        }
        Operation::RemoveRoute(mark, hop) => {
            Change { message: RouteNetlinkMessage::DelRoute(route(family, mark, hop)), flags: 0 }
        }
    }
}

fn rule(family: Family, mark: u32, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.into();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    rule
}

fn route(family: Family, table: u32, hop: Hop) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family.into();
    route.header.protocol = RouteProtocol::Other(PROTOCOL);
    route.attributes.push(RouteAttribute::Table(table));
    match hop {
        Hop::Via(address) => {
            route.header.kind = RouteType::Unicast;
            route.header.scope = RouteScope::Universe;
            route.attributes.push(RouteAttribute::Gateway(match address {
                IpAddr::V4(address) => RouteAddress::Inet(address),
                IpAddr::V6(address) => RouteAddress::Inet6(address),
            }));
        }
        Hop::Here => {
            route.header.kind = RouteType::Local;
            route.header.scope = RouteScope::Host;
            route.attributes.push(RouteAttribute::Oif(LOOPBACK));
        }
    }
    route
}

/// The IPv4 addresses of the calling thread's namespace.
pub(super) fn own_addresses() -> io::Result<BTreeSet<Ipv4Addr>> {
    let addresses = addresses(Family::V4)?.into_iter();
    Ok(addresses
        .filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect())
}

/// Whether the calling thread's namespace has an address of this network: IPv6 may be switched off in there.
pub(super) fn is_on(subnet: Ipv6Net) -> io::Result<bool> {
    let is_there = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => subnet.contains::<&Ipv6Addr>(address),
    };
    Ok(addresses(Family::V6)?.iter().any(is_there))
}

fn addresses(family: Family) -> io::Result<BTreeSet<IpAddr>> {
    use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
    let mut request = AddressMessage::default();
    request.header.family = family.into();
    let mut addresses = BTreeSet::new();
    for message in Netlink::open()?.dump(&RouteNetlinkMessage::GetAddress(request))? {
        if let RouteNetlinkMessage::NewAddress(found) = message {
            addresses.extend(found.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(*address),
                _ => None,
            }));
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(last: u8) -> Hop {
        Hop::Via(Ipv4Addr::new(10, 9, 0, last).into())
    }

    #[test]
    fn what_is_right_is_not_touched_and_what_is_wrong_is_replaced() {
        let wanted: Ways = [(1, via(1)), (2, via(2))].into();
        let right = Actual { rules: vec![(1, 1), (2, 2)], routes: [(1, via(1)), (2, via(2))].into() };
        assert_eq!(plan(&wanted, &right), []);
        let wrong = Actual { rules: vec![(1, 1), (1, 1), (3, 3), (2, 7)], routes: [(1, via(9))].into() };
        assert_eq!(
            plan(&wanted, &wrong),
            [
                Operation::RemoveRule(1, 1),
                Operation::RemoveRule(3, 3),
                Operation::RemoveRule(2, 7),
                Operation::RemoveRoute(1, via(9)),
                Operation::AddRoute(1, via(1)),
                Operation::AddRoute(2, via(2)),
                Operation::AddRule(2),
            ]
        );
    }
}
