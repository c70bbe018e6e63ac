//! The node's bridges and VXLAN ports: made, kept as they were assigned, removed.
//!
//! - A pass reads the kernel, compares, and changes what differs. Assignments and repairs are the same pass, so that a repair can
//!   do nothing that an assignment would not.
//! - One pass at a time. A pass that was begun is finished, also when nobody waits for it any more.
//! - What fails for one network is its problem, told by name, and tried again by the next pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use parking_lot::Mutex;
use wharf_model::{Backend, NetworkAssignment, NetworkId};

use super::{
    firewall::{Firewall, Outcome, rules},
    firewall6::Firewall6,
    kernel::{Observed, Seen, carry_out, observe, observe_uplinks, remove_bridges},
    netlink::Netlink,
    plan::{Actual, Mac, Underlay, Underlays, WantedNetwork, bridge_name, plan, unused_bridges},
    segment::{self, WantedSegment},
    watch::Concern,
    wireguard::TUNNEL_VXLAN_PORT,
};

/// What VXLAN puts around a packet: two headers of Ethernet and VXLAN, and UDP over IPv4 or IPv6.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;

/// Why the node's networks cannot be looked after at all.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No socket to the kernel.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel does not answer, or its tables cannot be read.
    #[error("cannot read or change the kernel's network tables")]
    Netlink(#[source] io::Error),
    /// Packets could not be sent from the address that the other nodes know.
    #[error(
        "no interface of this node has its address {0}: start the agent with the address other nodes reach it at"
    )]
    NoUplink(IpAddr),
}

/// What one pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "says which networks are not as they should be"]
pub struct Pass {
    /// How many changes were made to the kernel; 0 if everything was right.
    pub changes: usize,
    /// How often each thing was not as it should be, by VXLAN identifier.
    pub faults: BTreeMap<(u32, &'static str), usize>,
    /// What is not as it should be on the node itself.
    pub notes: Vec<String>,
    /// What could not be done, by network.
    pub problems: BTreeMap<NetworkId, String>,
}

/// The kernel's side of the node's networks.
#[derive(Clone)]
pub(super) struct Devices {
    shared: Arc<Shared>,
}

struct Shared {
    node: IpAddr,
    vxlan_port: u16,
    /// The address of this node's end of the WireGuard tunnels, once there is one.
    tunnel: Mutex<Option<IpAddr>>,
    /// What changes of others would be a reason for a pass.
    concern: Mutex<Arc<Concern>>,
    /// Held through a pass; only ever taken on a thread where blocking is allowed.
    state: Mutex<State>,
}

struct State {
    /// Absent after it failed, until the next pass.
    netlink: Option<Netlink>,
    wanted: Arc<BTreeMap<u32, WantedNetwork>>,
    /// Which node has each hardware address that is elsewhere, by network.
    elsewhere: Arc<BTreeMap<u32, BTreeMap<Mac, IpAddr>>>,
    ids: BTreeMap<u32, NetworkId>,
    /// Networks whose assignment makes no sense.
    refused: BTreeMap<NetworkId, String>,
    firewall: Firewall,
    firewall6: Firewall6,
    /// The addresses of this node's containers, by network.
    local: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
}

impl Devices {
    /// Looks after the devices of the calling thread's network namespace. Changes nothing yet.
    pub(super) fn open(node: IpAddr, vxlan_port: u16) -> Result<Self, NetworkError> {
        let netlink = Some(Netlink::open().map_err(NetworkError::Open)?);
        let (wanted, elsewhere, ids, refused) = Default::default();
        let (firewall, firewall6) = Default::default();
        let local = BTreeMap::new();
        let state =
            Mutex::new(State { netlink, wanted, elsewhere, ids, refused, firewall, firewall6, local });
        let (tunnel, concern) = Default::default();
        Ok(Self { shared: Arc::new(Shared { node, vxlan_port, tunnel, concern, state }) })
    }

    /// Networks with the backend `wireguard` run over the interface with this address from the next pass on.
    pub(super) fn set_tunnel(&self, address: Option<IpAddr>) {
        *self.shared.tunnel.lock() = address;
    }

    /// Takes `networks` for what is wanted, and makes the kernel so.
    pub(super) async fn prepare(
        &self,
        networks: &BTreeMap<NetworkId, NetworkAssignment>,
    ) -> Result<Pass, NetworkError> {
        let (shared, wanted) = (Arc::clone(&self.shared), Wanted::of(networks, self.shared.node));
        wharf_process::blocking(move || {
            let mut state = shared.state.lock();
            state.elsewhere = Arc::new(elsewhere(&wanted.networks));
            (state.wanted, state.ids, state.refused) = (wanted.networks.into(), wanted.ids, wanted.refused);
            shared.pass(&mut state)
        })
        .await
    }

    /// Makes the kernel again as it was last wanted.
    pub(super) async fn repair(&self) -> Result<Pass, NetworkError> {
        let shared = Arc::clone(&self.shared);
        wharf_process::blocking(move || shared.pass(&mut shared.state.lock())).await
    }

    /// Looks at the rules of the firewall only: the tables tell of their changes.
    pub(super) async fn look_at_rules(&self) -> Outcome {
        let shared = Arc::clone(&self.shared);
        wharf_process::blocking(move || {
            let mut state = shared.state.lock();
            let State { wanted, firewall, .. } = &mut *state;
            firewall.ensure(rules(wanted))
        })
        .await
    }

    /// Says which addresses containers of this node have that are on a network; those of its subnet are meant. Answers whether a network on the segment has others than before:
    /// then a pass has something to do.
    pub(super) async fn set_local(&self, local: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>) -> bool {
        let shared = Arc::clone(&self.shared);
        wharf_process::blocking(move || {
            let mut state = shared.state.lock();
            let before = segments(&state.wanted, &state.ids, &state.local);
            state.local = local;
            segments(&state.wanted, &state.ids, &state.local) != before
        })
        .await
    }

    /// What changes of others are a reason for a pass.
    pub(super) fn concern(&self) -> Arc<Concern> {
        Arc::clone(&self.shared.concern.lock())
    }

    /// The largest packet inside a network of this kind.
    pub(super) async fn mtu(&self, backend: Backend) -> Result<u32, NetworkError> {
        let shared = Arc::clone(&self.shared);
        wharf_process::blocking(move || {
            let observed =
                with(&mut shared.state.lock().netlink, observe_uplinks).map_err(NetworkError::Netlink)?;
            shared.mtu(backend, &observed).ok_or(NetworkError::NoUplink(shared.node))
        })
        .await
    }

    /// Removes bridges of networks that are no longer wanted, except those named and those into which something is plugged.
    /// Answers how many.
    pub(super) async fn remove_bridges(&self, keep: BTreeSet<String>) -> Result<usize, NetworkError> {
        let shared = Arc::clone(&self.shared);
        wharf_process::blocking(move || {
            let mut state = shared.state.lock();
            let State { netlink, wanted, .. } = &mut *state;
            with(netlink, |netlink| {
                let actual = observe_uplinks(netlink)?.actual;
                let mut unused = unused_bridges(wanted, &actual);
                unused.retain(|vni| !keep.contains(&bridge_name(*vni)));
                let failed = remove_bridges(netlink, &unused, &actual)?;
                for error in &failed {
                    tracing::warn!(%error, "bridge not removed");
                }
                Ok(unused.len() - failed.len())
            })
            .map_err(NetworkError::Netlink)
        })
        .await
    }
}

/// Assignments as the plan wants them.
#[derive(Default)]
struct Wanted {
    networks: BTreeMap<u32, WantedNetwork>,
    ids: BTreeMap<u32, NetworkId>,
    refused: BTreeMap<NetworkId, String>,
}

impl Wanted {
    fn of(assignments: &BTreeMap<NetworkId, NetworkAssignment>, node: IpAddr) -> Self {
        let mut wanted = Self::default();
        for (id, assignment) in assignments {
            let vni = assignment.vni;
            if let Some(other) = wanted.ids.get(&vni) {
                let text =
                    format!("network {}: its VXLAN identifier {vni} is that of {other}", assignment.name);
                wanted.refused.insert(*id, text);
            } else if !(1..1 << 24).contains(&vni) {
                let text = format!("network {}: {vni} is no VXLAN identifier", assignment.name);
                wanted.refused.insert(*id, text);
            } else {
                let mut network = WantedNetwork::from(assignment);
                // What lives here is found without us.
                network.peers.retain(|_, (_, peer)| *peer != node);
                network.parts.retain(|_, peer| *peer != node);
                wanted.networks.insert(vni, network);
                wanted.ids.insert(vni, *id);
            }
        }
        wanted
    }
}

impl Shared {
    fn pass(&self, state: &mut State) -> Result<Pass, NetworkError> {
        let State { netlink, wanted, elsewhere, ids, refused, firewall, firewall6, local } = state;
        let guarded = firewall6.ensure(wanted);
        let closed;
        let wanted: &Arc<_> = match &guarded {
            Ok(_) => &*wanted,
            Err(_) => {
                closed = Arc::new(without_ipv6(wanted));
                &closed
            }
        };
        let nodes = wanted.values().flat_map(|network| network.parts.values().copied()).collect();
        let observed = with(netlink, |netlink| observe(netlink, &nodes)).map_err(NetworkError::Netlink)?;
        let (underlays, mut problems) = self.underlays(wanted, ids, &observed)?;
        problems.extend(refused.clone());
        problems.extend(unreachable(wanted, ids, &observed.actual));
        let plan = plan(wanted, &underlays, &observed.actual);
        *self.concern.lock() = Arc::new(concern(wanted, elsewhere, &underlays, &observed));
        let mut faults = BTreeMap::new();
        for (vni, operation) in plan
            .iter()
            .flat_map(|(vni, operations)| operations.iter().map(move |operation| (*vni, operation)))
        {
            *faults.entry((vni, operation.fault())).or_default() += 1;
        }
        let changes = plan.values().map(Vec::len).sum();
        let mut pass = Pass { changes, faults, problems, notes: Vec::new() };
        if pass.changes > 0 {
            let failures = with(netlink, |netlink| carry_out(netlink, &plan, &underlays, &observed.actual))
                .map_err(NetworkError::Netlink)?;
            for (vni, (tried, error)) in failures {
                match ids.get(&vni) {
                    Some(id) => drop(pass.problems.insert(*id, format!("{tried}: {error}"))),
                    None => tracing::warn!(vni, %error, "{tried}"),
                }
            }
        }
        match guarded {
            Ok(0) => {}
            Ok(changes) => {
                pass.changes += changes;
                pass.faults.insert((0, "firewall rules of networks with IPv6 not as written"), changes);
            }
            Err(error) => {
                let why = wharf_process::errors::chain(&error);
                pass.notes.push(format!(
                    "networks have no IPv6 on this node, because nothing would keep them apart: {why}"
                ));
            }
        }
        let segments = segments(wanted, ids, local);
        with(netlink, |netlink| tend_segments(netlink, &segments, ids, &observed, &mut pass))
            .map_err(NetworkError::Netlink)?;
        let outcome = firewall.ensure(rules(wanted));
        if outcome.changes > 0 {
            pass.changes += outcome.changes;
            pass.faults.insert((0, "firewall rules of routed networks not as written"), outcome.changes);
        }
        pass.notes.extend(outcome.problems);
        Ok(pass)
    }

    /// What each network runs over, and which have nothing to run over.
    fn underlays(
        &self,
        wanted: &BTreeMap<u32, WantedNetwork>,
        ids: &BTreeMap<u32, NetworkId>,
        observed: &Observed,
    ) -> Result<(Underlays, BTreeMap<NetworkId, String>), NetworkError> {
        let (mut underlays, mut problems) = (Underlays::new(), BTreeMap::new());
        for (vni, network) in wanted.iter().filter(|(_, network)| network.has_bridge()) {
            let address = self.address(network.backend);
            let uplink = address.and_then(|address| observed.uplink(address));
            match (address, uplink, self.mtu(network.backend, observed)) {
                (Some(node), Some(uplink), Some(mtu)) => {
                    let vxlan_port = match network.backend {
                        Backend::Wireguard => TUNNEL_VXLAN_PORT,
                        Backend::Vxlan | Backend::Routed | Backend::Macvlan | Backend::Host => {
                            self.vxlan_port
                        }
                    };
                    let device = uplink.device;
                    underlays.insert(*vni, Underlay { node, device, vxlan_port, mtu });
                }
                _ if network.backend == Backend::Wireguard => {
                    let text = "the node's WireGuard interface is not there yet".to_owned();
                    problems.extend(ids.get(vni).map(|id| (*id, text)));
                }
                _ => return Err(NetworkError::NoUplink(self.node)),
            }
        }
        Ok((underlays, problems))
    }

    /// The address from which packets between nodes leave.
    fn address(&self, backend: Backend) -> Option<IpAddr> {
        match backend {
            Backend::Wireguard => *self.tunnel.lock(),
            Backend::Vxlan | Backend::Routed | Backend::Macvlan | Backend::Host => Some(self.node),
        }
    }

    /// The largest packet inside a network: that of the interface it runs over, less what goes around it.
    fn mtu(&self, backend: Backend, observed: &Observed) -> Option<u32> {
        let address = self.address(backend)?;
        let uplink = observed.uplink(address)?;
        let overhead = match backend {
            Backend::Vxlan | Backend::Wireguard if address.is_ipv4() => OVERHEAD_V4,
            Backend::Vxlan | Backend::Wireguard => OVERHEAD_V6,
            Backend::Routed | Backend::Macvlan | Backend::Host => 0,
        };
        Some(uplink.mtu.saturating_sub(overhead))
    }
}

/// The networks on the segment as they should be.
fn segments(
    wanted: &BTreeMap<u32, WantedNetwork>,
    ids: &BTreeMap<u32, NetworkId>,
    local: &BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
) -> BTreeMap<u32, WantedSegment> {
    let segments = wanted.iter().filter(|(_, network)| network.backend == Backend::Macvlan);
    let segment = |(vni, network): (&u32, &WantedNetwork)| {
        let subnet = network.subnet();
        let local = ids.get(vni).and_then(|id| local.get(id)).into_iter().flatten().copied();
        let local = local.filter(|address| subnet.contains(address)).collect();
        let parent = network.parent.clone()?;
        Some((*vni, WantedSegment { parent, gateway: network.gateway, local }))
    };
    segments.filter_map(segment).collect()
}

fn tend_segments(
    netlink: &mut Netlink,
    wanted: &BTreeMap<u32, WantedSegment>,
    ids: &BTreeMap<u32, NetworkId>,
    observed: &Observed,
    pass: &mut Pass,
) -> io::Result<()> {
    let actual = segment::observe(netlink, &observed.links, observed.addresses())?;
    let vnis: BTreeSet<u32> = wanted.keys().chain(actual.shims.keys()).copied().collect();
    for vni in vnis {
        let mut problem = None;
        match segment::plan(vni, wanted.get(&vni), &actual) {
            Ok(steps) => {
                pass.changes += steps.len();
                if !steps.is_empty() {
                    pass.faults
                        .insert((vni, "the node's device on the segment not as it should be"), steps.len());
                }
                for step in &steps {
                    if let Err(error) = segment::carry_out(netlink, vni, step) {
                        problem = Some(segment::describe(vni, step, &error));
                        break;
                    }
                }
            }
            Err(error) => problem = Some(error.to_string()),
        }
        if let (Some(problem), Some(id)) = (problem, ids.get(&vni)) {
            pass.problems.insert(*id, problem);
        }
    }
    Ok(())
}

fn elsewhere(wanted: &BTreeMap<u32, WantedNetwork>) -> BTreeMap<u32, BTreeMap<Mac, IpAddr>> {
    let of = |network: &WantedNetwork| network.peers.values().copied().collect();
    wanted.iter().map(|(vni, network)| (*vni, of(network))).collect()
}

fn concern(
    wanted: &Arc<BTreeMap<u32, WantedNetwork>>,
    elsewhere: &Arc<BTreeMap<u32, BTreeMap<Mac, IpAddr>>>,
    underlays: &Underlays,
    observed: &Observed,
) -> Concern {
    let actual = &observed.actual;
    let ports = actual.ports.iter().map(|(vni, port)| (port.index, *vni)).collect::<BTreeMap<_, _>>();
    let bridges = actual.bridges.iter().map(|(vni, bridge)| (bridge.index, *vni)).collect::<BTreeMap<_, _>>();
    let ways = underlays.values().map(|underlay| underlay.device);
    let ways: BTreeSet<u32> = ways.chain(actual.hops.values().map(|hop| hop.device)).collect();
    let is_member = |seen: &Seen| seen.master.is_some_and(|master| bridges.contains_key(&master));
    let concerns = |(index, seen): &(&u32, &Seen)| {
        seen.is_ours()
            || ports.contains_key(*index)
            || bridges.contains_key(*index)
            || ways.contains(*index)
            || is_member(seen)
    };
    let links = observed.links.iter().filter(concerns).map(|(index, seen)| (*index, seen.clone())).collect();
    Concern {
        wanted: Arc::clone(wanted),
        elsewhere: Arc::clone(elsewhere),
        hops: actual.hops.clone(),
        links,
        addresses: underlays.values().map(|underlay| underlay.node).collect(),
        ports,
        bridges,
    }
}

/// The same networks, with IPv4 alone.
fn without_ipv6(networks: &BTreeMap<u32, WantedNetwork>) -> BTreeMap<u32, WantedNetwork> {
    let mut networks = networks.clone();
    for network in networks.values_mut() {
        (network.gateway6, network.addresses6) = Default::default();
    }
    networks
}

/// Routed networks with a part on a node to which this one knows no way.
fn unreachable(
    wanted: &BTreeMap<u32, WantedNetwork>,
    ids: &BTreeMap<u32, NetworkId>,
    actual: &Actual,
) -> BTreeMap<NetworkId, String> {
    let lost = |(vni, network): (&u32, &WantedNetwork)| {
        let (part, node) = network.parts.iter().find(|(_, node)| !actual.hops.contains_key(*node))?;
        let text = format!("{part} is on the node {node}, and this node has no route to that address");
        Some((*ids.get(vni)?, text))
    };
    wanted.iter().filter_map(lost).collect()
}

/// Uses the socket, and gives it up if it fails: what it would answer next belongs to what failed.
fn with<T>(netlink: &mut Option<Netlink>, work: impl FnOnce(&mut Netlink) -> io::Result<T>) -> io::Result<T> {
    let mut socket = match netlink.take() {
        Some(socket) => socket,
        None => Netlink::open()?,
    };
    let result = work(&mut socket)?;
    *netlink = Some(socket);
    Ok(result)
}
