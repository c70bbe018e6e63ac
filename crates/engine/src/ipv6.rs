//! Gives networks that ask for one an IPv6 subnet, and looks at the IPv6 addresses that services ask for.
//!
//! - No two networks' IPv6 subnets overlap, and none overlaps what a node reaches by itself.
//! - Whoever has an IPv4 address on a network has the IPv6 address that follows from it, so that there is nothing to give out. An address
//!   that a service asks for is none that follows from an address of the network's IPv4 subnet, unless from its own: so it is nobody's
//!   else now and later.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv6Net};
use wharf_model::{
    AppKey, Backend, HostSubnet, Ipv6Addresses, NetworkName, NetworkRecord, NetworkSpec, Task,
};

use crate::{NetworkRefusal, World};

/// What a network takes of the cluster's range.
const PREFIX: u8 = 64;
/// The longest prefix that leaves room for an IPv4 address.
const LONGEST: u8 = 96;

/// Why a network has no IPv6, or a task not the IPv6 address it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ipv6Refusal {
    /// Packets that travel so are IPv4.
    Backend(Backend),
    /// The cluster was made without a range for it.
    NoRange,
    /// No subnet of the cluster's range is left.
    RangeExhausted(Ipv6Net),
    /// No room for IPv4 addresses in it.
    TooSmall(Ipv6Net),
    /// The wanted subnet overlaps another network's.
    SubnetTaken {
        /// The wanted subnet.
        subnet: Ipv6Net,
        /// Whose it overlaps.
        by: AppKey,
        /// Its network.
        network: NetworkName,
    },
    /// The wanted subnet overlaps what a node reaches by itself.
    SubnetOnHost {
        /// The wanted subnet.
        subnet: Ipv6Net,
        /// The node.
        node: String,
        /// What it reaches.
        host: HostSubnet,
    },
    /// An address on a network that has none.
    None(Ipv6Addr),
    /// The wanted address is not in the network, or stands for all of its routers.
    AddressOutside {
        /// The wanted address.
        address: Ipv6Addr,
        /// The subnet.
        subnet: Ipv6Net,
    },
    /// The wanted address is that of whoever has this IPv4 address.
    AddressFollows {
        /// The wanted address.
        address: Ipv6Addr,
        /// From which it follows.
        from: Ipv4Addr,
    },
    /// The wanted address belongs to somebody.
    AddressTaken {
        /// The wanted address.
        address: Ipv6Addr,
        /// Whose it is.
        by: String,
    },
}
impl From<Ipv6Refusal> for NetworkRefusal {
    fn from(refusal: Ipv6Refusal) -> Self {
        Self::Ipv6(refusal)
    }
}
impl fmt::Display for Ipv6Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(backend) => write!(
                f,
                "a network with the backend {backend} has no IPv6; hint: use `backend: vxlan`, or remove `enable_ipv6`"
            ),
            Self::NoRange => f.write_str(
                "the cluster has no range of IPv6 addresses; hint: give the network an IPv6 subnet under `ipam`",
            ),
            Self::RangeExhausted(range) => write!(
                f,
                "every subnet of the cluster's IPv6 range {range} is in use; \
                 hint: take down apps that are not needed, or give the network an IPv6 subnet under `ipam`"
            ),
            Self::TooSmall(subnet) => write!(
                f,
                "the IPv6 subnet {subnet} has no room for addresses that end in IPv4 ones; hint: use /{LONGEST} or shorter"
            ),
            Self::SubnetTaken { subnet, by, network } => {
                write!(f, "the subnet {subnet} overlaps that of network {network} of app {}", by.name)
            }
            Self::SubnetOnHost { subnet, node, host } => write!(
                f,
                "the subnet {subnet} overlaps what node {node} reaches by itself ({host}); \
                 hint: choose another subnet, or leave it out, and the cluster finds one that is free on all nodes"
            ),
            Self::None(address) => write!(
                f,
                "the address {address} is asked for on a network without IPv6; \
                 hint: write `enable_ipv6: true` where the network is made"
            ),
            Self::AddressOutside { address, subnet } => {
                write!(f, "the address {address} is not one that tasks may have in {subnet}")
            }
            Self::AddressFollows { address, from } => write!(
                f,
                "the address {address} is that of whoever has {from}; \
                 hint: ask for `ipv4_address: {from}`, or for an IPv6 address that does not end in one of the network's IPv4 addresses"
            ),
            Self::AddressTaken { address, by } => write!(f, "the address {address} belongs to {by}"),
        }
    }
}

fn overlap(one: Ipv6Net, other: Ipv6Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// What a node reaches without the cluster, where it overlaps a subnet. Addresses that every link has are no network's.
fn on_hosts(world: &World, subnet: Ipv6Net) -> Option<(String, HostSubnet)> {
    world.nodes().find_map(|node| {
        let there = |host: &&HostSubnet| matches!(host.subnet, IpNet::V6(net) if overlap(net, subnet));
        let found = node.facts()?.subnets.iter().find(there)?;
        Some((node.record.name.to_string(), found.clone()))
    })
}

/// Whether a network that travels so can have what it wants.
pub(crate) fn check(wanted: &NetworkSpec, backend: Backend) -> Result<(), NetworkRefusal> {
    match backend {
        Backend::Vxlan | Backend::Wireguard => Ok(()),
        Backend::Routed | Backend::Macvlan | Backend::Host if wanted.enable_ipv6 => {
            Err(Ipv6Refusal::Backend(backend).into())
        }
        Backend::Routed | Backend::Macvlan | Backend::Host => Ok(()),
    }
}

/// The IPv6 subnet that a new network gets, if it asks for IPv6: the wanted one, or else one of the cluster's range, beginning with that
/// of its VXLAN identifier.
pub(crate) fn subnet<'n>(
    world: &World,
    wanted: &NetworkSpec,
    vni: u32,
    networks: impl Iterator<Item = &'n NetworkRecord>,
) -> Result<Option<Ipv6Net>, NetworkRefusal> {
    if !wanted.enable_ipv6 {
        return Ok(None);
    }
    let others: Vec<_> = networks.filter_map(|network| Some((network.subnet6?, network))).collect();
    let taken = |subnet: Ipv6Net| others.iter().find(|(other, _)| overlap(*other, subnet));
    if let Some(subnet) = wanted.subnet6.map(|subnet| subnet.trunc()) {
        if subnet.prefix_len() > LONGEST {
            return Err(Ipv6Refusal::TooSmall(subnet).into());
        }
        if let Some((_, other)) = taken(subnet) {
            let (by, network) = (other.app.clone(), other.name.clone());
            return Err(Ipv6Refusal::SubnetTaken { subnet, by, network }.into());
        }
        return match on_hosts(world, subnet) {
            None => Ok(Some(subnet)),
            Some((node, host)) => Err(Ipv6Refusal::SubnetOnHost { subnet, node, host }.into()),
        };
    }
    let range = world.unique_local.ok_or(Ipv6Refusal::NoRange)?;
    let bits = u32::from(PREFIX.saturating_sub(range.prefix_len())).min(16);
    let count = 1_u32 << bits;
    // The subnet 0 is nobody's, so that a mistaken one is not a network's.
    let numbers = (0..count).map(|step| (vni.wrapping_add(step)) % count).filter(|number| *number != 0);
    let subnets = numbers.filter_map(|number| {
        let at = u128::from(range.network()) | u128::from(number) << (128 - u32::from(PREFIX));
        Ipv6Net::new(at.into(), PREFIX).ok()
    });
    let mut free = subnets.filter(|subnet| taken(*subnet).is_none() && on_hosts(world, *subnet).is_none());
    free.next().map(Some).ok_or_else(|| Ipv6Refusal::RangeExhausted(range).into())
}

/// The IPv6 address that this task of a network asked for.
pub(crate) fn asked(world: &World, task: &Task, address: Ipv4Addr) -> Option<Ipv6Addr> {
    let revision = world.revision_of(&task.service, task.generation)?;
    let (name, _) = task.addresses.iter().find(|(_, own)| **own == address)?;
    revision.spec.networks.get(name)?.ipv6_address
}

/// Whether a task that has `own` on a network may have the IPv6 address it asks for, as far as others' addresses that were given out or
/// will be are concerned. Who else asked for it is not looked at.
pub(crate) fn may_have(
    network: &NetworkRecord,
    own: Ipv4Addr,
    address: Ipv6Addr,
) -> Result<(), NetworkRefusal> {
    let subnet = network.subnet6.ok_or(Ipv6Refusal::None(address))?;
    if !subnet.contains(&address) || address == subnet.network() {
        return Err(Ipv6Refusal::AddressOutside { address, subnet }.into());
    }
    match Ipv6Addresses::new(subnet).whose(address) {
        Some(from) if from != own && network.subnet.contains(&from) => {
            Err(Ipv6Refusal::AddressFollows { address, from }.into())
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wharf_model::{AppSpec, HostSubnet, NetworkId, ServiceSpec, ipv6_for};

    use super::*;
    use crate::{Assigner, fixtures::*};

    fn range() -> Ipv6Net {
        "fd12:3456:789a::/48".parse().unwrap()
    }

    fn record(n: u16, subnet6: Option<&str>) -> NetworkRecord {
        NetworkRecord {
            id: NetworkId::new(uuid::Uuid::from_u128(u128::from(n))),
            app: app_key(),
            name: format!("net{n}").parse().unwrap(),
            spec: NetworkSpec::default(),
            vni: u32::from(n),
            subnet: "10.192.0.0/20".parse().unwrap(),
            gateways: BTreeMap::new(),
            backend: Backend::default(),
            blocks: BTreeMap::new(),
            subnet6: subnet6.map(|subnet| subnet.parse().unwrap()),
            vips: BTreeMap::new(),
            retired: false,
        }
    }

    fn wanting(subnet: Option<&str>) -> NetworkSpec {
        let subnet6 = subnet.map(|subnet| subnet.parse().unwrap());
        NetworkSpec { enable_ipv6: true, subnet6, ..NetworkSpec::default() }
    }

    #[test]
    fn a_network_gets_the_subnet_of_its_identifier_or_the_next_that_is_free() {
        let mut cluster = Cluster::of(2);
        let given = |cluster: &Cluster, vni, others: &[NetworkRecord]| {
            subnet(&cluster.world, &wanting(None), vni, others.iter()).map(Option::unwrap)
        };
        let none = given(&cluster, 7, &[]).unwrap_err();
        insta::assert_snapshot!(none, @"the cluster has no range of IPv6 addresses; hint: give the network an IPv6 subnet under `ipam`");
        cluster.world.unique_local = Some(range());
        assert_eq!(given(&cluster, 7, &[]).unwrap().to_string(), "fd12:3456:789a:7::/64");
        let others = [record(1, Some("fd12:3456:789a:7::/64")), record(2, None)];
        assert_eq!(given(&cluster, 7, &others).unwrap().to_string(), "fd12:3456:789a:8::/64");
        assert_eq!(given(&cluster, 0xff_ffff, &others).unwrap().to_string(), "fd12:3456:789a:ffff::/64");
        let last = [record(1, Some("fd12:3456:789a:ffff::/64"))];
        assert_eq!(given(&cluster, 0xff_ffff, &last).unwrap().to_string(), "fd12:3456:789a:1::/64");
        let all = [record(1, Some("fd12:3456::/32"))];
        insta::assert_snapshot!(given(&cluster, 7, &all).unwrap_err(), @"every subnet of the cluster's IPv6 range fd12:3456:789a::/48 is in use; hint: take down apps that are not needed, or give the network an IPv6 subnet under `ipam`");
        let plain = subnet(&cluster.world, &NetworkSpec::default(), 7, [].into_iter());
        assert_eq!(plain, Ok(None), "who does not ask gets none");
    }

    #[test]
    fn a_wanted_subnet_overlaps_neither_a_network_nor_what_a_node_reaches() {
        let mut cluster = Cluster::of(2);
        cluster.world.unique_local = Some(range());
        let mut status = cluster.world.node(node_id(2)).unwrap().status.clone().unwrap();
        let host = |subnet: &str| HostSubnet {
            subnet: subnet.parse().unwrap(),
            interface: "eth0".into(),
            router: None,
        };
        let mut facts = status.facts.clone().unwrap();
        facts.subnets = vec![host("2001:db8:1::/64"), host("fd12:3456:789a:7::/64")];
        status.facts = Some(facts);
        cluster.world.set_node_status(node_id(2), status);
        let ask = |wanted: &str| {
            subnet(&cluster.world, &wanting(Some(wanted)), 7, [record(1, Some("fd00:1::/48"))].iter())
        };
        assert_eq!(ask("fd00:2::5/64"), Ok(Some("fd00:2::/64".parse().unwrap())));
        insta::assert_snapshot!(ask("fd00:1:0:5::/64").unwrap_err(), @"the subnet fd00:1:0:5::/64 overlaps that of network net1 of app shop");
        insta::assert_snapshot!(ask("2001:db8::/32").unwrap_err(), @"the subnet 2001:db8::/32 overlaps what node n2 reaches by itself (2001:db8:1::/64 on eth0); hint: choose another subnet, or leave it out, and the cluster finds one that is free on all nodes");
        insta::assert_snapshot!(ask("fd00:3::/100").unwrap_err(), @"the IPv6 subnet fd00:3::/100 has no room for addresses that end in IPv4 ones; hint: use /96 or shorter");
        let own = subnet(&cluster.world, &wanting(None), 7, [].into_iter());
        assert_eq!(own.unwrap().unwrap().to_string(), "fd12:3456:789a:8::/64", "a node reaches 7 by itself");
    }

    #[test]
    fn what_carries_ipv4_alone_says_so() {
        let refused = check(&wanting(None), Backend::Routed).unwrap_err();
        insta::assert_snapshot!(refused, @"a network with the backend routed has no IPv6; hint: use `backend: vxlan`, or remove `enable_ipv6`");
        for backend in Backend::ALL {
            assert_eq!(check(&NetworkSpec::default(), backend), Ok(()));
        }
        assert_eq!(check(&wanting(None), Backend::Vxlan), Ok(()));
        assert_eq!(check(&wanting(None), Backend::Wireguard), Ok(()));
    }

    fn asking(address: &str) -> ServiceSpec {
        let mut spec = service("web");
        spec.networks.values_mut().for_each(|at| at.ipv6_address = Some(address.parse().unwrap()));
        spec
    }

    fn dual(services: &[(&str, ServiceSpec)]) -> AppSpec {
        let mut spec = app(services);
        spec.networks.values_mut().for_each(|network| network.enable_ipv6 = true);
        spec
    }

    fn cluster(services: &[(&str, ServiceSpec)]) -> Cluster {
        let mut cluster = Cluster::of(3);
        cluster.world.unique_local = Some(range());
        cluster.up(&dual(services));
        cluster.settle();
        cluster
    }

    #[test]
    fn an_address_that_is_or_could_be_anothers_is_refused_with_whose() {
        let waiting = |address: &str| {
            let cluster = cluster(&[("db", asking("fd12:3456:789a:1::cafe")), ("web", asking(address))]);
            cluster.waiting()
        };
        assert_eq!(waiting("fd12:3456:789a:1::beef"), "");
        insta::assert_snapshot!(waiting("fd12:3456:789a:1::cafe"), @"web.1 cannot join network default: the address fd12:3456:789a:1::cafe belongs to db.1 of app shop");
        insta::assert_snapshot!(waiting("fd12:3456:789a:2::1"), @"web.1 cannot join network default: the address fd12:3456:789a:2::1 is not one that tasks may have in fd12:3456:789a:1::/64");
        insta::assert_snapshot!(waiting("fd12:3456:789a:1::"), @"web.1 cannot join network default: the address fd12:3456:789a:1:: is not one that tasks may have in fd12:3456:789a:1::/64");
        insta::assert_snapshot!(waiting("fd12:3456:789a:1::ac0:77"), @"web.1 cannot join network default: the address fd12:3456:789a:1::ac0:77 is that of whoever has 10.192.0.119; hint: ask for `ipv4_address: 10.192.0.119`, or for an IPv6 address that does not end in one of the network's IPv4 addresses");
    }

    #[test]
    fn an_address_without_ipv6_is_refused() {
        let mut cluster = Cluster::of(1);
        cluster.world.unique_local = Some(range());
        cluster.up(&app(&[("web", asking("fd00::7"))]));
        cluster.settle();
        insta::assert_snapshot!(cluster.waiting(), @"web.1 cannot join network default: the address fd00::7 is asked for on a network without IPv6; hint: write `enable_ipv6: true` where the network is made");
    }

    /// Every IPv6 address of every network, with who has it, as all nodes hear of it.
    fn everybody(cluster: &Cluster) -> BTreeMap<(NetworkId, Ipv6Addr), String> {
        let assigner = Assigner::new(&cluster.world);
        let mut held: BTreeMap<(NetworkId, Ipv6Addr), String> = BTreeMap::new();
        for node in cluster.world.nodes() {
            let set = assigner.for_node(node.record.id);
            for (id, network) in &set.networks {
                let subnet = network.subnet6.unwrap();
                let names = &set.dns.ipv6[id];
                let mut hold = |address: Ipv6Addr, who: String| {
                    let before = held.insert((*id, address), who.clone());
                    assert!(
                        before.as_ref().is_none_or(|before| *before == who),
                        "{address}: {before:?} {who}"
                    );
                    assert!(subnet.contains(&address));
                };
                hold(ipv6_for(subnet, network.gateway), network.gateway.to_string());
                for peer in &network.peers {
                    let address = peer.address6.unwrap_or(ipv6_for(subnet, peer.address));
                    hold(address, peer.address.to_string());
                }
                let own = set.tasks.values().flat_map(|task| &task.attachments);
                for on in own.filter(|on| on.network == *id) {
                    let address = on.address6.unwrap_or(ipv6_for(subnet, on.address));
                    hold(address, on.address.to_string());
                    assert_eq!(names.of(on.address), address, "names say the same");
                    assert_eq!(names.whose(address), Some(on.address));
                }
            }
        }
        held
    }

    #[test]
    fn all_nodes_hear_the_same_of_every_address_while_services_come_and_go() {
        let mut cluster = cluster(&[("web", replicas(service("web"), 3))]);
        let mut random = 4711_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut most = 0;
        for _ in 0..40 {
            let mut services = vec![("web", replicas(service("web"), 1 + u32::try_from(draw(4)).unwrap()))];
            for name in ["a", "b"] {
                let address = match draw(5) {
                    0 => continue,
                    1 => None,
                    // Also the one of whoever has an IPv4 address of the network, and one that the other may have.
                    2 => Some(format!("fd12:3456:789a:1::ac0:{:x}", draw(12))),
                    _ => Some(format!("fd12:3456:789a:1::c{:x}", draw(2))),
                };
                services.push((name, address.map_or_else(|| service("web"), |address| asking(&address))));
            }
            cluster.up(&dual(&services));
            for _ in 0..draw(12) {
                let _ = cluster.pass();
                cluster.step();
                most = most.max(everybody(&cluster).len());
            }
        }
        assert!(most >= 8, "there was something to confuse: {most}");
    }

    #[test]
    fn no_address_is_ever_anybody_elses_over_ten_thousand_rounds() {
        let network = record(1, Some("fd12:3456:789a:1::/64"));
        let subnet = network.subnet6.unwrap();
        let mut random = 4711_u64;
        let mut draw = |below: u32| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(random >> 33).unwrap() % below
        };
        let at = |last: u32| Ipv4Addr::from(u32::from(network.subnet.network()) + last);
        // Who has which IPv4 address is given out without doubles; what each asked for.
        let mut there: BTreeMap<Ipv4Addr, Option<Ipv6Addr>> = BTreeMap::new();
        let (mut admitted, mut refused) = (0, 0);
        for round in 0..10_000 {
            let own = at(2 + draw(40));
            if there.remove(&own).is_some() {
                continue;
            }
            let asked: Option<Ipv6Addr> = match draw(4) {
                0 => None,
                // One that follows from somebody's, now or later, or from its own.
                1 => Some(ipv6_for(subnet, at(2 + draw(40)))),
                2 => Some(ipv6_for(subnet, Ipv4Addr::new(0, 0, 0, u8::try_from(draw(40)).unwrap()))),
                _ => Some(Ipv6Addr::from(u128::from(subnet.network()) | u128::from(draw(40)) << 33)),
            };
            let may = asked.is_none_or(|asked| may_have(&network, own, asked).is_ok());
            if !may || asked.is_some_and(|asked| there.values().any(|other| *other == Some(asked))) {
                refused += 1;
                continue;
            }
            admitted += u32::from(asked.is_some());
            there.insert(own, asked);
            let of = |(own, asked): (&Ipv4Addr, &Option<Ipv6Addr>)| asked.unwrap_or(ipv6_for(subnet, *own));
            let all: std::collections::BTreeSet<_> = there.iter().map(of).collect();
            assert_eq!(all.len(), there.len(), "in round {round}");
        }
        assert!(admitted > 1000 && refused > 1000, "{admitted} {refused}");
    }
}
