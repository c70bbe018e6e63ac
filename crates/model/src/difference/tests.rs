use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
};

use proptest::prelude::*;

use super::*;
use crate::*;

/// Choices for what is made at random; all the same once there are no more.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn throw(&mut self, sides: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % sides)
    }
    fn list<T>(&mut self, most: u8, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.throw(most + 1)).map(|_| make(self)).collect()
    }
    fn map<K: Ord, V>(
        &mut self,
        mut key: impl FnMut(&mut Self) -> K,
        mut value: impl FnMut(&mut Self) -> V,
    ) -> BTreeMap<K, V> {
        self.list(4, |dice| (key(dice), value(dice))).into_iter().collect()
    }
    fn set<T: Ord>(&mut self, make: impl FnMut(&mut Self) -> T) -> BTreeSet<T> {
        self.list(5, make).into_iter().collect()
    }
    fn word(&mut self) -> String {
        ["web", "db", "tasks.web", "web.shop"][usize::from(self.throw(4))].to_owned()
    }
    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, self.throw(9))
    }
    fn id<K: Kind>(&mut self) -> Id<K> {
        Id::from_parts(1, [self.throw(4); 10])
    }
    fn endpoint(&mut self) -> Endpoint {
        let at = SocketAddrV4::new(self.address(), 80);
        Endpoint { keeps_client: self.throw(2) == 1, ..Endpoint::new(self.id(), at) }
    }
    fn service(&mut self) -> ServiceKey {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        ServiceKey { app, name: ["web", "db"][usize::from(self.throw(2))].parse().unwrap() }
    }
    fn certificate(&mut self) -> ShownCertificate {
        ShownCertificate { hosts: self.list(2, Self::word), chain: self.word(), key: self.word() }
    }
    fn network(&mut self) -> NetworkAssignment {
        let subnet = "10.0.0.0/16".parse().unwrap();
        let mut network =
            NetworkAssignment::new(self.id(), self.word(), self.throw(2).into(), subnet, self.address());
        network.internal = self.throw(4) == 1;
        network.labels = self.map(Self::word, Self::word);
        network.peers = self.list(12, |dice| Peer {
            address: dice.address(),
            node: dice.address().into(),
            mac: (dice.throw(5) == 1).then_some(Mac([2; 6])),
            address6: None,
            task: (dice.throw(4) == 1).then(|| dice.id()),
        });
        if self.throw(2) == 0 {
            network.peers.sort_unstable();
        }
        network.parent = (self.throw(3) == 1).then(|| self.word());
        network.remote_blocks = self.list(3, |dice| RemoteBlock {
            block: Ipv4Net::new(dice.address(), 32).unwrap(),
            node: dice.address().into(),
        });
        network.entries = self.set(Self::address);
        network
    }
    fn dns(&mut self) -> DnsTable {
        let addresses = |dice: &mut Self| dice.list(5, Self::address);
        DnsTable {
            version: Revision(self.throw(3).into()),
            networks: self.map(Self::id, |dice| dice.map(Self::word, addresses)),
            externals: self.map(Self::id, |dice| {
                dice.map(Self::word, |dice| ExternalHost::Address(dice.address().into()))
            }),
            hosts: self.map(Self::id, |dice| dice.map(Self::address, Self::word)),
            ports: self.map(Self::id, |dice| {
                let port = |dice: &mut Self| NamedPort {
                    port: dice.throw(3).into(),
                    protocol: Protocol::Tcp,
                    name: None,
                };
                dice.map(Self::word, |dice| dice.list(3, port))
            }),
            ipv6: self.map(Self::id, |dice| {
                let mut ipv6 = Ipv6Addresses::new("fd00::/64".parse().unwrap());
                ipv6.asked = dice.map(Self::address, |dice| Ipv6Addr::from(u128::from(dice.throw(3))));
                ipv6
            }),
            vips: self.map(Self::id, |dice| {
                dice.map(Self::address, |dice| VirtualService {
                    name: dice.word(),
                    names: dice.set(Self::word),
                    tasks: dice.set(Self::address),
                    leaving: dice.set(Self::address),
                })
            }),
            programmed: self.set(Self::address),
        }
    }
    fn routes(&mut self) -> RouteTable {
        RouteTable {
            version: Revision(self.throw(3).into()),
            routes: self.list(5, |dice| Route {
                service: dice.service(),
                port: dice.throw(4).into(),
                protocol: Protocol::Tcp,
                host_ip: None,
                endpoints: dice.list(6, Self::endpoint),
            }),
            services: self.list(4, |dice| ServiceRoute {
                id: RouteId { service: dice.service(), number: dice.throw(3).into(), preview: false },
                spec: RouteSpec { port: dice.throw(2).into(), ..route_spec() },
                sets: dice.list(3, |dice| EndpointSet {
                    generation: Generation(dice.throw(3).into()),
                    weight: dice.throw(3).into(),
                    endpoints: dice.list(5, Self::endpoint),
                }),
                fallback: dice.list(2, Self::endpoint),
                mirror: dice.list(2, Self::endpoint),
                users: Users(dice.list(2, Self::word)),
            }),
            certificates: self.list(3, Self::certificate),
            challenges: self.list(3, |dice| match dice.throw(2) {
                0 => AcmeChallenge::Http01 { host: dice.word(), token: dice.word(), answer: dice.word() },
                _ => AcmeChallenge::TlsAlpn01 { certificate: dice.certificate() },
            }),
            ticket_keys: self.list(3, |dice| TicketKey([dice.throw(3); 32])),
            unheard: self.set(Self::id),
            gone: self.map(Self::id, Self::id),
            withheld: self.throw(4) == 1,
        }
    }
    fn task(&mut self) -> TaskAssignment {
        TaskAssignment {
            id: self.id(),
            service: self.service(),
            slot: Slot(self.throw(3).into()),
            generation: Generation(self.throw(2).into()),
            name: self.word(),
            target: [Target::Run, Target::Stop][usize::from(self.throw(2))],
            spec: serde_json::from_str(r#"{"image": "img"}"#).unwrap(),
            image: Image::named("img"),
            attachments: self.list(2, |dice| Attachment::new(dice.id(), dice.address())),
            volumes: BTreeMap::new(),
            files: Vec::new(),
            devices: Vec::new(),
            companions: BTreeMap::new(),
            fenced: self.throw(2) == 1,
        }
    }
    fn assignments(&mut self) -> AssignmentSet {
        AssignmentSet {
            epoch: self.throw(2).into(),
            revision: Revision(self.throw(5).into()),
            node: self.id(),
            tasks: self.map(Self::id, Self::task),
            networks: self.map(Self::id, Self::network),
            volumes: self.map(Self::id, |dice| VolumeAssignment {
                id: dice.id(),
                name: dice.word(),
                spec: VolumeSpec::default(),
            }),
            removed_volumes: self.list(3, Self::id),
            dns: self.dns(),
            routes: self.routes(),
            wireguard: (self.throw(2) == 1).then(|| WireguardAssignment {
                address: Ipv6Addr::LOCALHOST,
                promote: None,
                rotation: self.throw(2).into(),
                relays: false,
                peers: self.map(Self::id, |dice| WireguardPeer {
                    name: "n1".parse().unwrap(),
                    address: Ipv6Addr::LOCALHOST,
                    key: PublicKey([dice.throw(3); 32]),
                    next: None,
                    endpoint: None,
                    via: None,
                }),
                unreachable: self.list(2, Self::word),
            }),
            disk_marks: DiskMarks { full: 95 + self.throw(3), ..DiskMarks::default() },
            watched: self.list(3, |dice| WatchedNode { node: dice.id(), address: dice.address().into() }),
        }
    }
}

fn route_spec() -> RouteSpec {
    serde_json::from_str(r#"{"port": 80}"#).unwrap()
}

fn set(bytes: &[u8]) -> AssignmentSet {
    Dice(bytes.iter()).assignments()
}

/// Sends the difference, and applies what arrived; also says how long it was.
fn lead<T: Differ>(old: &T, new: &T) -> (T, usize) {
    let mut value = old.clone();
    let Some(difference) = old.diff(new) else { return (value, 0) };
    let sent = serde_json::to_vec(&difference).unwrap();
    let arrived: Change<T> = serde_json::from_slice(&sent).unwrap();
    assert_eq!(arrived, difference);
    arrived.apply(&mut value).unwrap();
    (value, sent.len())
}

proptest! {
    #[test]
    fn a_difference_applied_to_where_it_starts_is_exactly_where_it_leads(
        old in prop::collection::vec(any::<u8>(), 0..600),
        new in prop::collection::vec(any::<u8>(), 0..600),
        edits in prop::collection::vec((0..600_usize, any::<u8>()), 0..4),
    ) {
        // What has nothing in common, and what has nearly everything.
        let mut near = old.clone();
        for (place, byte) in edits {
            near.get_mut(place).into_iter().for_each(|old| *old = byte);
        }
        let old = set(&old);
        // Who is sent it whole has exactly it, too.
        let arrived: AssignmentSet = serde_json::from_slice(&serde_json::to_vec(&old).unwrap()).unwrap();
        prop_assert_eq!(&arrived, &old);
        for new in [set(&new), set(&near)] {
            prop_assert_eq!(&lead(&old, &new).0, &new);
            prop_assert_eq!(old.diff(&new).is_none(), old == new);
            prop_assert_eq!(old.diff(&new), old.clone().diff(&new.clone()));
        }
    }

    #[test]
    fn lists_in_any_order_become_each_other(
        old in prop::collection::vec(0..12_u8, 0..20),
        new in prop::collection::vec(0..12_u8, 0..20),
    ) {
        let list = |from: &[u8]| -> Vec<Ipv4Addr> { from.iter().map(|last| [10, 0, 0, *last].into()).collect() };
        let (old, new) = (list(&old), list(&new));
        prop_assert_eq!(&lead(&old, &new).0, &new);
    }

    #[test]
    fn a_difference_applied_to_something_else_does_no_harm(
        old in prop::collection::vec(any::<u8>(), 0..300),
        new in prop::collection::vec(any::<u8>(), 0..300),
        other in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut value = set(&other);
        // It may be noticed or not, but nothing panics.
        let _noticed = set(&old).diff(&set(&new)).map(|difference| difference.apply(&mut value));
    }
}

#[test]
fn what_is_not_where_it_should_be_is_noticed() {
    let at = |last: u8| Ipv4Addr::new(10, 0, 0, last);
    let list = |gone, put| ListDifference::<Ipv4Addr> { gone, changed: Vec::new(), put };
    for wrong in [list(vec![2], vec![]), list(vec![1, 0], vec![]), list(vec![], vec![(4, at(9))])] {
        assert_eq!(vec![at(1), at(2)].amend(wrong), Err(Unfit));
    }
    let mut some = BTreeSet::from([1_u8]);
    assert_eq!(some.amend(SetDifference { gone: vec![2], put: vec![] }), Err(Unfit));
    assert_eq!(some.amend(SetDifference { gone: vec![], put: vec![1] }), Err(Unfit));
    let mut map = BTreeMap::from([(1_u8, "a".to_owned())]);
    let gone = MapDifference { gone: vec![2], put: BTreeMap::new(), changed: BTreeMap::new() };
    assert_eq!(map.amend(gone), Err(Unfit));
    assert_eq!(None::<WireguardAssignment>.amend(WireguardDifference::default()), Err(Unfit));
}

#[test]
fn a_small_change_of_much_is_small() {
    let mut old = set(&[]);
    let (id, service) = (NetworkId::from_parts(1, [1; 10]), Dice([].iter()).service());
    let mut network = NetworkAssignment::new(id, "n", 1, "10.0.0.0/8".parse().unwrap(), Ipv4Addr::LOCALHOST);
    let mut endpoints = Vec::new();
    for number in 0..10_000_u32 {
        let address = Ipv4Addr::from(0x0a00_0000 + number);
        network.peers.push(Peer::new(address, Ipv4Addr::LOCALHOST.into()));
        old.dns.networks.entry(id).or_default().insert(format!("service{number}"), vec![address]);
        endpoints
            .push(Endpoint::new(TaskId::from_parts(number.into(), [0; 10]), SocketAddrV4::new(address, 1)));
    }
    old.networks.insert(id, network);
    let route = Route { service, port: 80, protocol: Protocol::Tcp, host_ip: None, endpoints };
    old.routes.routes.push(route);
    let mut new = old.clone();
    new.revision = Revision(7);
    new.networks.get_mut(&id).unwrap().peers.remove(5_000);
    new.dns.networks.get_mut(&id).unwrap().insert("service5000".into(), vec![]);
    new.routes.routes[0].endpoints.remove(5_000);
    let (led, bytes) = lead(&old, &new);
    assert_eq!(led, new);
    assert!(bytes < 500, "{bytes} bytes");
}
