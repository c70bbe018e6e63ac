//! How one value becomes another: so that telling and keeping a change costs in proportion to the change, not to what changes.
//!
//! - **The law**: a difference applied to the value it starts from gives exactly the value it leads to, for any two values; and there is
//!   one exactly if they differ. The same two values always have the same difference.
//! - A difference starts from one value. What applies it makes sure that it has that one; here it is only noticed where something
//!   is not there at all ([`Unfit`]).
//! - A structure has all of its fields in its difference: one that is added to it and not here breaks the build.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    AcmeChallenge, AssignmentSet, Backend, DiskMarks, DnsTable, Endpoint, EndpointSet, ExternalHost,
    Generation, Ipv6Addresses, Mac, NamedPort, NetworkAssignment, NetworkId, NodeId, Peer, Protocol,
    PublicKey, RemoteBlock, Revision, Route, RouteId, RouteSpec, RouteTable, ServiceKey, ServiceRoute,
    ShownCertificate, TaskAssignment, TaskId, TicketKey, Users, VirtualService, VolumeAssignment, VolumeId,
    WatchedNode, WireguardAssignment, WireguardPeer,
};

/// Something that can say how it becomes another.
pub trait Differ: Clone + PartialEq + Debug + Serialize + DeserializeOwned {
    /// How part of it becomes another.
    type Difference: Clone + PartialEq + Debug + Serialize + DeserializeOwned;

    /// What makes this one `new`; nothing if it is.
    fn diff(&self, new: &Self) -> Option<Change<Self>>;

    /// Changes what the difference says.
    ///
    /// # Errors
    /// If it cannot have started from this value. What is left then is neither of the two.
    fn amend(&mut self, difference: Self::Difference) -> Result<(), Unfit>;
}

/// What makes a value another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "", rename_all = "snake_case")]
pub enum Change<T: Differ> {
    /// It becomes this, whatever it was.
    Whole(T),
    /// Part of it changes.
    Part(T::Difference),
}

impl<T: Differ> Change<T> {
    /// Makes `value` what it becomes.
    ///
    /// # Errors
    /// If this cannot have started from that value. What is left then is neither of the two.
    pub fn apply(self, value: &mut T) -> Result<(), Unfit> {
        match self {
            Self::Whole(new) => {
                *value = new;
                Ok(())
            }
            Self::Part(difference) => value.amend(difference),
        }
    }
}

/// A difference that does not start from the value it was applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the difference starts from something else")]
pub struct Unfit;

/// The difference of what only changes as a whole: there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

macro_rules! as_a_whole {
    ($($of:ty),* $(,)?) => {$(
        impl Differ for $of {
            type Difference = Never;
            fn diff(&self, new: &Self) -> Option<Change<Self>> {
                (self != new).then(|| Change::Whole(new.clone()))
            }
            fn amend(&mut self, difference: Never) -> Result<(), Unfit> {
                match difference {}
            }
        }
    )*};
}

as_a_whole!(bool, u16, u32, u64, String);
as_a_whole!(IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, Ipv4Net, Ipv6Net, Mac);
as_a_whole!(NetworkId, NodeId, TaskId, VolumeId, RouteId, ServiceKey, Revision, Generation);
as_a_whole!(TaskAssignment, VolumeAssignment, Peer, RemoteBlock, Backend, DiskMarks, WatchedNode);
as_a_whole!(ExternalHost, NamedPort, Ipv6Addresses, Protocol, Endpoint, RouteSpec, Users);
as_a_whole!(ShownCertificate, AcmeChallenge, TicketKey, PublicKey, WireguardPeer);

/// What keys of maps and members of sets are.
pub trait Key: Clone + Ord + Debug + Serialize + DeserializeOwned {}
impl<T: Clone + Ord + Debug + Serialize + DeserializeOwned> Key for T {}

/// How a map becomes another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct MapDifference<K: Key, V: Differ> {
    /// Keys that it does not have any more.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<K>,
    /// Values that are new, or become something else as a whole.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub put: BTreeMap<K, V>,
    /// Values of which part changes.
    #[serde(default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    pub changed: BTreeMap<K, V::Difference>,
}

impl<K: Key, V: Differ> Differ for BTreeMap<K, V> {
    type Difference = MapDifference<K, V>;

    fn diff(&self, new: &Self) -> Option<Change<Self>> {
        let mut difference =
            MapDifference { gone: Vec::new(), put: BTreeMap::new(), changed: BTreeMap::new() };
        in_step(
            self.iter(),
            new.iter(),
            |(old, _), (new, _)| old.cmp(new),
            |step| match step {
                Step::Gone((key, _)) => difference.gone.push(key.clone()),
                Step::New((key, value)) => drop(difference.put.insert(key.clone(), value.clone())),
                Step::Both((key, old), (_, new)) => match old.diff(new) {
                    None => {}
                    Some(Change::Whole(value)) => drop(difference.put.insert(key.clone(), value)),
                    Some(Change::Part(part)) => drop(difference.changed.insert(key.clone(), part)),
                },
            },
        );
        let MapDifference { gone, put, changed } = &difference;
        let same = gone.is_empty() && put.is_empty() && changed.is_empty();
        (!same).then_some(Change::Part(difference))
    }

    fn amend(&mut self, difference: Self::Difference) -> Result<(), Unfit> {
        for key in difference.gone {
            self.remove(&key).ok_or(Unfit)?;
        }
        for (key, part) in difference.changed {
            self.get_mut(&key).ok_or(Unfit)?.amend(part)?;
        }
        self.extend(difference.put);
        Ok(())
    }
}

/// How a set becomes another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SetDifference<T: Key> {
    /// What it does not have any more.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<T>,
    /// What it has in addition.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub put: Vec<T>,
}

impl<T: Key> Differ for BTreeSet<T> {
    type Difference = SetDifference<T>;

    fn diff(&self, new: &Self) -> Option<Change<Self>> {
        let mut difference = SetDifference { gone: Vec::new(), put: Vec::new() };
        in_step(
            self.iter(),
            new.iter(),
            |old, new| old.cmp(new),
            |step| match step {
                Step::Gone(old) => difference.gone.push(old.clone()),
                Step::New(new) => difference.put.push(new.clone()),
                Step::Both(..) => {}
            },
        );
        match difference.gone.len() + difference.put.len() {
            0 => None,
            changes if changes > new.len() => Some(Change::Whole(new.clone())),
            _ => Some(Change::Part(difference)),
        }
    }

    fn amend(&mut self, difference: Self::Difference) -> Result<(), Unfit> {
        let went = difference.gone.iter().all(|gone| self.remove(gone));
        let came = difference.put.into_iter().all(|put| self.insert(put));
        if went && came { Ok(()) } else { Err(Unfit) }
    }
}

/// What a list is made of. Where lists are in the order of these keys their differences are short; they are right in any order.
pub trait Keyed: Differ {
    /// What it is told from others by.
    type Key<'a>: Ord
    where
        Self: 'a;
    /// What this one is told from others by.
    fn key(&self) -> Self::Key<'_>;
}

macro_rules! keyed {
    ($($of:ty: $key:ty = |$value:ident| $by:expr;)*) => {$(
        impl Keyed for $of {
            type Key<'a> = $key;
            fn key(&self) -> Self::Key<'_> {
                let $value = self;
                $by
            }
        }
    )*};
}

keyed! {
    Ipv4Addr: Self = |address| *address;
    NetworkId: Self = |id| *id;
    VolumeId: Self = |id| *id;
    String: &'a str = |text| text;
    Ipv4Net: Self = |net| *net;
    RemoteBlock: Self = |block| *block;
    Peer: Ipv4Addr = |peer| peer.address;
    NamedPort: &'a Self = |port| port;
    Endpoint: (TaskId, std::net::SocketAddrV4) = |endpoint| (endpoint.task, endpoint.address);
    EndpointSet: Generation = |set| set.generation;
    Route: (u16, Protocol, &'a ServiceKey) = |route| (route.port, route.protocol, &route.service);
    ServiceRoute: &'a RouteId = |route| &route.id;
    ShownCertificate: (&'a [String], &'a str) = |shown| (&shown.hosts, &shown.chain);
    TicketKey: &'a [u8] = |key| &key.0;
    WatchedNode: NodeId = |watched| watched.node;
    AcmeChallenge: (&'a [String], &'a str, &'a str) = |challenge| match challenge {
        Self::Http01 { host, token, .. } => (&[], host, token),
        Self::TlsAlpn01 { certificate } => (&certificate.hosts, &certificate.chain, ""),
    };
}

/// How a list becomes another. Places are counted from 0, and grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct ListDifference<T: Differ> {
    /// Where in the old list what goes was.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<usize>,
    /// Where in the old list what changes was. It stays.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<(usize, T::Difference)>,
    /// Where in the new list what comes is. What stays is around it, in the order it was in.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub put: Vec<(usize, T)>,
}

impl<T: Keyed> Differ for Vec<T> {
    type Difference = ListDifference<T>;

    fn diff(&self, new: &Self) -> Option<Change<Self>> {
        let mut difference = ListDifference { gone: Vec::new(), changed: Vec::new(), put: Vec::new() };
        let (old, those) = (self.iter().enumerate(), new.iter().enumerate());
        in_step(
            old,
            those,
            |(_, old), (_, new)| old.key().cmp(&new.key()),
            |step| match step {
                Step::Gone((place, _)) => difference.gone.push(place),
                Step::New((place, value)) => difference.put.push((place, value.clone())),
                Step::Both((was, old), (place, new)) => match old.diff(new) {
                    None => {}
                    Some(Change::Part(part)) => difference.changed.push((was, part)),
                    Some(Change::Whole(value)) => {
                        difference.gone.push(was);
                        difference.put.push((place, value));
                    }
                },
            },
        );
        match difference.gone.len() + difference.put.len() {
            0 if difference.changed.is_empty() => None,
            changes if changes > new.len() => Some(Change::Whole(new.clone())),
            _ => Some(Change::Part(difference)),
        }
    }

    fn amend(&mut self, difference: Self::Difference) -> Result<(), Unfit> {
        for (place, part) in difference.changed {
            self.get_mut(place).ok_or(Unfit)?.amend(part)?;
        }
        let mut gone = difference.gone.into_iter().peekable();
        let mut stays = Vec::with_capacity(self.len());
        for (place, value) in std::mem::take(self).into_iter().enumerate() {
            if gone.next_if_eq(&place).is_none() {
                stays.push(value);
            }
        }
        let mut stays = stays.into_iter();
        for (place, value) in difference.put {
            let between = place.checked_sub(self.len()).ok_or(Unfit)?;
            self.extend(stays.by_ref().take(between));
            if self.len() != place {
                return Err(Unfit);
            }
            self.push(value);
        }
        self.extend(stays);
        if gone.next().is_none() { Ok(()) } else { Err(Unfit) }
    }
}

impl<T: Differ> Differ for Option<T> {
    type Difference = T::Difference;

    fn diff(&self, new: &Self) -> Option<Change<Self>> {
        match (self, new) {
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => Some(Change::Whole(new.clone())),
            (Some(old), Some(new)) => Some(match old.diff(new)? {
                Change::Whole(value) => Change::Whole(Some(value)),
                Change::Part(part) => Change::Part(part),
            }),
        }
    }

    fn amend(&mut self, difference: Self::Difference) -> Result<(), Unfit> {
        self.as_mut().ok_or(Unfit)?.amend(difference)
    }
}

macro_rules! by_fields {
    ($($(#[$doc:meta])* $difference:ident: $of:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $difference {$(
            #[doc = concat!("What `", stringify!($field), "` becomes.")]
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $field: Option<Change<$type>>,
        )*}

        impl Differ for $of {
            type Difference = $difference;
            fn diff(&self, new: &Self) -> Option<Change<Self>> {
                let Self { $($field),* } = self;
                let difference = $difference { $($field: $field.diff(&new.$field)),* };
                (difference != $difference::default()).then_some(Change::Part(difference))
            }
            fn amend(&mut self, difference: $difference) -> Result<(), Unfit> {
                let $difference { $($field),* } = difference;
                $(if let Some(change) = $field {
                    change.apply(&mut self.$field)?;
                })*
                Ok(())
            }
        }
    )*};
}

by_fields! {
    /// How an assignment set becomes another.
    AssignmentDifference: AssignmentSet {
        epoch: u64,
        revision: Revision,
        node: NodeId,
        tasks: BTreeMap<TaskId, TaskAssignment>,
        networks: BTreeMap<NetworkId, NetworkAssignment>,
        volumes: BTreeMap<VolumeId, VolumeAssignment>,
        removed_volumes: Vec<VolumeId>,
        dns: DnsTable,
        routes: RouteTable,
        wireguard: Option<WireguardAssignment>,
        disk_marks: DiskMarks,
        watched: Vec<WatchedNode>,
    }
    /// How a network becomes another.
    NetworkDifference: NetworkAssignment {
        id: NetworkId,
        name: String,
        vni: u32,
        subnet: Ipv4Net,
        gateway: Ipv4Addr,
        internal: bool,
        attachable: bool,
        driver_opts: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
        peers: Vec<Peer>,
        backend: Backend,
        parent: Option<String>,
        router: Option<Ipv4Addr>,
        blocks: Vec<Ipv4Net>,
        remote_blocks: Vec<RemoteBlock>,
        subnet6: Option<Ipv6Net>,
        entries: BTreeSet<Ipv4Addr>,
    }
    /// How a node's names become others.
    DnsDifference: DnsTable {
        version: Revision,
        networks: BTreeMap<NetworkId, BTreeMap<String, Vec<Ipv4Addr>>>,
        externals: BTreeMap<NetworkId, BTreeMap<String, ExternalHost>>,
        hosts: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, String>>,
        ports: BTreeMap<NetworkId, BTreeMap<String, Vec<NamedPort>>>,
        ipv6: BTreeMap<NetworkId, Ipv6Addresses>,
        vips: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, VirtualService>>,
        programmed: BTreeSet<Ipv4Addr>,
    }
    /// How a service with a virtual address becomes another.
    VirtualServiceDifference: VirtualService {
        name: String,
        names: BTreeSet<String>,
        tasks: BTreeSet<Ipv4Addr>,
        leaving: BTreeSet<Ipv4Addr>,
    }
    /// How a gateway's routes become others.
    RouteTableDifference: RouteTable {
        version: Revision,
        routes: Vec<Route>,
        services: Vec<ServiceRoute>,
        certificates: Vec<ShownCertificate>,
        challenges: Vec<AcmeChallenge>,
        ticket_keys: Vec<TicketKey>,
        unheard: BTreeSet<TaskId>,
        gone: BTreeMap<TaskId, NodeId>,
        withheld: bool,
    }
    /// How a published port becomes another.
    RouteDifference: Route {
        service: ServiceKey,
        port: u16,
        protocol: Protocol,
        host_ip: Option<IpAddr>,
        endpoints: Vec<Endpoint>,
    }
    /// How a service's route becomes another.
    ServiceRouteDifference: ServiceRoute {
        id: RouteId,
        spec: RouteSpec,
        sets: Vec<EndpointSet>,
        fallback: Vec<Endpoint>,
        mirror: Vec<Endpoint>,
        users: Users,
    }
    /// How the tasks of one generation become others.
    EndpointSetDifference: EndpointSet {
        generation: Generation,
        weight: u32,
        endpoints: Vec<Endpoint>,
    }
    /// How a node's tunnels become others.
    WireguardDifference: WireguardAssignment {
        address: Ipv6Addr,
        promote: Option<PublicKey>,
        rotation: u32,
        relays: bool,
        peers: BTreeMap<NodeId, WireguardPeer>,
        unreachable: Vec<String>,
    }
}

/// What two sequences have at one point of their order.
enum Step<O, N> {
    Gone(O),
    New(N),
    Both(O, N),
}

/// Goes through two sequences side by side, always on with the lesser. If one is not in order, what is met together is less; every
/// element is met once all the same, and in its turn.
fn in_step<O, N>(
    old: impl Iterator<Item = O>,
    new: impl Iterator<Item = N>,
    order: impl Fn(&O, &N) -> Ordering,
    mut meet: impl FnMut(Step<O, N>),
) {
    let (mut olds, mut news) = (old.peekable(), new.peekable());
    loop {
        let next = match (olds.peek(), news.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(old, new),
        };
        let old = next.is_le().then(|| olds.next()).flatten();
        let new = next.is_ge().then(|| news.next()).flatten();
        match (old, new) {
            (Some(old), Some(new)) => meet(Step::Both(old, new)),
            (Some(old), None) => meet(Step::Gone(old)),
            (None, Some(new)) => meet(Step::New(new)),
            (None, None) => return,
        }
    }
}

#[cfg(test)]
mod tests;
