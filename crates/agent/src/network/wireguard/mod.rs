//! The WireGuard tunnels of this node, inside which networks of the backend `wireguard` run.
//!
//! - Exact: after a pass the device has the tunnels that were assigned and no others, with the keys that this node and the others have in
//!   force. What is right is not touched, so that no session is lost to a pass.
//! - The kernel carries the tunnels if it can; else [`device`], a process that outlives the agent. Both are asked and changed alike.
//! - A key changes without a gap: the others accept the next one before this node uses it, this node calls them all as soon as it does,
//!   and they answer with it from the first packet that they hear.
//! - Nothing that belongs inside leaves in the clear, and nothing from outside gets in: rules of nftables see to both, whatever becomes of
//!   the device.
//!
//! `plan` decides, without input or output; `keys`, `link`, `uapi` and `kernel` carry out.

mod device;
mod kernel;
mod keys;
mod link;
mod plan;
mod uapi;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use wharf_model::{
    NodeId, PublicKey, TUNNEL_PREFIX, Timestamp, WIREGUARD_PORT, WireguardAssignment, WireguardFacts,
};
use wharf_process::{
    Clock, Tasks, blocking,
    detached::{self, Link, Program},
    errors,
};

pub use self::{device::run_device, plan::TunnelStatus};
use self::{
    kernel::Family,
    keys::Keys,
    link::Kind,
    plan::{Actual, Change, PeerChange, statuses},
    uapi::{Request, read_answer, write_request},
};
use super::{
    netlink::Netlink,
    nft::{self, Place},
};

/// The interface of the tunnels.
pub const DEVICE: &str = "wharf-wg";
/// UDP port of VXLAN packets inside the tunnels. Another than outside: what arrives there by any other way is dropped.
pub const TUNNEL_VXLAN_PORT: u16 = 4792;
/// How old a key may become.
pub const KEY_AGE: Duration = Duration::from_secs(30 * 86_400);

/// How often the device is compared with what was assigned.
const REPAIR: Duration = Duration::from_secs(1);
/// How often it is asked for a peer's next key while one is expected: packets under it are taken from then on.
const LISTEN: Duration = Duration::from_millis(10);
/// How long that goes on after a next key was told of; then it is asked for less often: some node that has to accept it is away.
const EXPECTED: Duration = Duration::from_secs(120);
/// The table of our rules.
const TABLE: &str = "inet wharf_wireguard";
/// Nobody listens there.
const DISCARD: u16 = 9;

/// How a node takes part in tunnels.
#[derive(Debug, Clone)]
pub struct TunnelOptions {
    /// The address at which other nodes reach this one.
    pub node: IpAddr,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Where other nodes reach that port, if not at the node's address.
    pub endpoint: Option<SocketAddr>,
    /// Where the keys are kept.
    pub state_dir: PathBuf,
    /// Where the process listens that carries tunnels if the kernel does not.
    pub run_dir: PathBuf,
    /// What makes this executable that process: these arguments, the name of the interface, and the socket.
    pub process: Vec<OsString>,
    /// How old a key may become.
    pub key_age: Duration,
}

impl TunnelOptions {
    /// The usual.
    pub fn new(node: IpAddr, state_dir: PathBuf, run_dir: PathBuf, process: Vec<OsString>) -> Self {
        let (port, endpoint, key_age) = (WIREGUARD_PORT, None, KEY_AGE);
        Self { node, port, endpoint, state_dir, run_dir, process, key_age }
    }
}

/// Why there are no tunnels.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The keys cannot be read or written.
    #[error("cannot keep the WireGuard keys")]
    Keys(#[source] io::Error),
    /// The kernel does not do what is asked.
    #[error("cannot {0} the interface {DEVICE}")]
    Interface(&'static str, #[source] io::Error),
    /// The name is taken.
    #[error("there is an interface {DEVICE} that is neither WireGuard nor a TUN device: remove or rename it")]
    Foreign,
    /// Tunnels have IPv6 addresses.
    #[error("this kernel was started without IPv6, which the tunnels need inside: remove `ipv6.disable=1`")]
    NoIpv6,
    /// Their size follows from that of the network below.
    #[error("no interface of this node has its address {0}")]
    NoUplink(IpAddr),
    /// The process does not run.
    #[error("cannot start the process that carries tunnels")]
    Process(#[source] io::Error),
    /// It runs, and does not do what is asked.
    #[error("the WireGuard device does not answer")]
    Device(#[source] io::Error),
}

/// The tunnels of this node.
pub struct Tunnels {
    options: TunnelOptions,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    /// Who has it makes a pass.
    work: tokio::sync::Mutex<Work>,
    state: Mutex<State>,
    /// Reason for a pass.
    wake: Arc<Notify>,
}

/// What only a pass needs.
#[derive(Default)]
struct Work {
    carrier: Option<Carrier>,
    netlink: Option<Netlink>,
    guard: nft::Kept,
    guarded: bool,
    told: BTreeMap<PublicKey, SocketAddr>,
    /// When rules and interface were last looked at.
    looked: Option<Instant>,
}

/// What is known of the tunnels.
struct State {
    keys: Keys,
    wanted: Option<WireguardAssignment>,
    /// Since when each peer is wanted.
    since: BTreeMap<NodeId, Instant>,
    /// Since when a next key of a peer is expected.
    expected: BTreeMap<PublicKey, Instant>,
    actual: Actual,
    carrier: Option<String>,
    failure: Option<String>,
    unguarded: Option<String>,
}

/// What carries the tunnels.
enum Carrier {
    Kernel(Family),
    Process(Link),
}

impl Carrier {
    async fn ask(&mut self, request: Request, now: Timestamp) -> io::Result<Actual> {
        match (self, request) {
            (Self::Kernel(family), Request::Get) => family.read(DEVICE, now),
            (Self::Kernel(family), Request::Set(change)) => {
                family.change(DEVICE, &change).map(|()| Actual::default())
            }
            (Self::Process(link), request) => {
                link.write(&[write_request(&request).as_bytes()]).await?;
                let answer = tokio::time::timeout(Duration::from_secs(5), link.read()).await??;
                read_answer(&String::from_utf8_lossy(&answer)).map_err(io::Error::other)
            }
        }
    }
}

impl Tunnels {
    /// Reads this node's keys, or makes the first. There are no tunnels until they are [prepared](Self::prepare).
    ///
    /// # Errors
    /// If the keys cannot be read or written.
    pub fn open(options: TunnelOptions, clock: Arc<dyn Clock>, tasks: &Tasks) -> Result<Self, TunnelError> {
        let keys = Keys::open(&options.state_dir, now(&*clock)).map_err(TunnelError::Keys)?;
        let state = State {
            keys,
            wanted: None,
            since: BTreeMap::new(),
            expected: BTreeMap::new(),
            actual: Actual::default(),
            carrier: None,
            failure: None,
            unguarded: None,
        };
        let (work, state) = (tokio::sync::Mutex::default(), Mutex::new(state));
        Ok(Self { options, clock, tasks: tasks.clone(), work, state, wake: Arc::default() })
    }

    /// Makes the tunnels as assigned, all of them and no others; without an assignment there are none. To be called before the networks inside are
    /// prepared.
    ///
    /// # Errors
    /// If that is not possible; it is tried again every second, and said by [`Self::problems`].
    pub async fn prepare(&self, assignment: Option<&WireguardAssignment>) -> Result<(), TunnelError> {
        {
            let mut state = self.state.lock();
            let now = Instant::now();
            let peers = || assignment.into_iter().flat_map(|assignment| &assignment.peers);
            state.since.retain(|node, _| peers().any(|(peer, _)| peer == node));
            state.expected.retain(|key, _| peers().any(|(_, peer)| peer.next == Some(*key)));
            for (node, peer) in peers() {
                state.since.entry(*node).or_insert(now);
                if let Some(next) = peer.next {
                    state.expected.entry(next).or_insert(now);
                }
            }
            state.wanted = assignment.cloned();
        }
        self.work.lock().await.looked = None;
        let outcome = self.pass().await;
        self.wake.notify_one();
        outcome
    }

    /// Compares and mends until `stop`. The tunnels stay as they are then.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                // Cancel-safe, all of them: a flag, a notice and a timer.
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(self.pause()) => {}
            }
            let before = self.state.lock().failure.clone();
            if let Err(error) = self.pass().await {
                let error = errors::chain(&error);
                // Not told again until it changes.
                if before.as_ref() != Some(&error) {
                    tracing::warn!(error, "tunnels not mended");
                }
            }
        }
    }

    fn pause(&self) -> Duration {
        let state = self.state.lock();
        let heard = |key: &PublicKey| state.actual.peers.get(key).is_some_and(|peer| peer.received > 0);
        let unheard = state.expected.iter().filter(|(key, _)| !heard(key));
        match unheard.map(|(_, since)| since.elapsed()).min() {
            Some(waited) if waited < EXPECTED => LISTEN,
            Some(_) => LISTEN * 5,
            None => REPAIR,
        }
    }

    /// What this node says of its end.
    #[must_use]
    pub fn facts(&self) -> WireguardFacts {
        let state = self.state.lock();
        let nexts = state.wanted.iter().flat_map(|wanted| wanted.peers.values()).filter_map(|peer| peer.next);
        WireguardFacts {
            key: state.keys.current.public,
            rotation: state.keys.current.rotation,
            next: state.keys.next.as_ref().map(|key| key.public),
            accepts: nexts.filter(|next| state.actual.peers.contains_key(next)).collect(),
            endpoint: self.options.endpoint,
            carrier: state.carrier.clone(),
        }
    }

    /// How each tunnel is.
    #[must_use]
    pub fn status(&self) -> Vec<TunnelStatus> {
        let state = self.state.lock();
        let Some(wanted) = &state.wanted else { return Vec::new() };
        let age = state.since.iter().map(|(node, since)| (*node, since.elapsed())).collect();
        statuses(wanted, self.options.port, &state.actual, &age)
    }

    /// What is not as it should be, in words for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = {
            let state = self.state.lock();
            let unreachable = state.wanted.iter().flat_map(|wanted| &wanted.unreachable);
            state.failure.iter().chain(&state.unguarded).chain(unreachable).cloned().collect()
        };
        problems.extend(self.status().into_iter().filter_map(|tunnel| tunnel.problem));
        problems
    }

    /// One comparison, with what follows from it.
    async fn pass(&self) -> Result<(), TunnelError> {
        let mut work = self.work.lock().await;
        let wanted = self.state.lock().wanted.clone();
        let outcome = match wanted {
            Some(assignment) => self.keep(&mut work, &assignment).await,
            None => self.take_down(&mut work).await,
        };
        self.state.lock().failure = outcome.as_ref().err().map(|error| errors::chain(error));
        outcome
    }

    async fn keep(&self, work: &mut Work, assignment: &WireguardAssignment) -> Result<(), TunnelError> {
        let switched = self.keep_keys(assignment)?;
        // What others may have done to the node is looked for less often than what a device has heard.
        let whole = work.carrier.is_none() || work.looked.is_none_or(|at| at.elapsed() >= REPAIR);
        if whole {
            self.guard(work).await;
        }
        // Put back only after a whole exchange: half of one would be answered to the next question.
        let (mut carrier, mut fresh) = match work.carrier.take() {
            Some(carrier) => (carrier, false),
            None => (self.open_carrier(work).await?, true),
        };
        let mut is_up = whole && self.keep_interface(work, assignment).await?;
        let actual = match carrier.ask(Request::Get, now(&*self.clock)).await {
            Ok(actual) => actual,
            Err(error) if fresh => return Err(TunnelError::Device(error)),
            // It has died: the next one begins at once.
            Err(error) => {
                tracing::warn!(error = errors::chain(&error), "the process that carries tunnels is gone");
                carrier = self.open_carrier(work).await?;
                is_up |= self.keep_interface(work, assignment).await?;
                fresh = true;
                let ask = carrier.ask(Request::Get, now(&*self.clock));
                ask.await.map_err(TunnelError::Device)?
            }
        };
        let key = self.state.lock().keys.current.private.clone();
        let change = plan::plan(assignment, &key, self.options.port, &actual, &mut work.told);
        let begun = begun(&change, &actual);
        let actual = if change.is_empty() {
            actual
        } else {
            let ask = carrier.ask(Request::Set(change), now(&*self.clock));
            ask.await.map_err(TunnelError::Device)?;
            carrier.ask(Request::Get, now(&*self.clock)).await.map_err(TunnelError::Device)?
        };
        work.carrier = Some(carrier);
        if whole {
            work.looked = Some(Instant::now());
        }
        self.state.lock().actual = actual;
        if switched || fresh || is_up {
            call(assignment.peers.values().map(|peer| peer.address));
        } else if !begun.is_empty() {
            call(begun.into_iter());
        }
        Ok(())
    }

    /// Puts the next key into force if the others accept it, and makes one when it is time. Answers whether the key changed.
    fn keep_keys(&self, assignment: &WireguardAssignment) -> Result<bool, TunnelError> {
        let mut state = self.state.lock();
        let mut switched = false;
        if let Some(key) = assignment.promote {
            switched = state.keys.promote(key).map_err(TunnelError::Keys)?;
            if switched {
                tracing::info!(%key, "new WireGuard key in force");
            }
        }
        let age = self.options.key_age;
        if state.keys.renew(assignment.rotation, age, now(&*self.clock)).map_err(TunnelError::Keys)? {
            tracing::info!("new WireGuard key made");
        }
        Ok(switched)
    }

    async fn open_carrier(&self, work: &mut Work) -> Result<Carrier, TunnelError> {
        let node = self.options.node;
        let made = on_netlink(work, move |netlink| {
            let there = link::observe(netlink, DEVICE, node)?.0;
            Ok(match there {
                Some(interface) => Ok(interface.kind),
                None => link::make(netlink, DEVICE).map(|()| Kind::Wireguard),
            })
        });
        let made = made.await.map_err(|error| TunnelError::Interface("look at", error))?;
        let why = match made {
            Ok(Kind::Wireguard) => {
                let family =
                    blocking(Family::open).await.map_err(|error| TunnelError::Interface("set up", error))?;
                let missing = || io::Error::other("the kernel made it and does not know its own WireGuard");
                let family = family.ok_or_else(|| TunnelError::Interface("set up", missing()))?;
                self.state.lock().carrier = Some("the kernel's WireGuard".to_owned());
                return Ok(Carrier::Kernel(family));
            }
            Ok(Kind::Other) => return Err(TunnelError::Foreign),
            Ok(Kind::Tun) => {
                "the interface was made for one; after a reboot the kernel is asked again".to_owned()
            }
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
                "the kernel has no WireGuard".to_owned()
            }
            Err(error) => format!("the kernel makes no WireGuard interface: {error}"),
        };
        let link = self.reach().await.map_err(TunnelError::Process)?;
        let mut state = self.state.lock();
        if state.carrier.is_none() {
            tracing::info!(why, "a process carries the tunnels");
            state.carrier = Some(format!("a process ({why})"));
        }
        Ok(Carrier::Process(link))
    }

    fn socket(&self) -> PathBuf {
        self.options.run_dir.join("wireguard").join("device")
    }

    /// The process, also one that an earlier build started: its tunnels are worth more than its version. Started if there is none.
    async fn reach(&self) -> io::Result<Link> {
        let socket = self.socket();
        if let Some(folder) = socket.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let link = match Link::connect(&socket).await {
            Ok(Some(link)) => link,
            Ok(None) | Err(_) => {
                let mut arguments = self.options.process.clone();
                arguments.extend([DEVICE.into(), socket.clone().into()]);
                Program::own(arguments, socket.clone()).reach().await?.0
            }
        };
        // Nothing ever comes on this one, until the process ends.
        if let Some(mut watch) = Link::connect(&socket).await? {
            let (wake, stop) = (Arc::clone(&self.wake), self.tasks.token());
            self.tasks.spawn("wireguard device", async move {
                tokio::select! {
                    // Dropped with the agent: the connection ends, which the process does not mind.
                    () = stop.cancelled() => {}
                    _ = watch.read() => wake.notify_one(),
                }
            });
        }
        Ok(link)
    }

    /// Answers whether something had to be done.
    async fn keep_interface(
        &self,
        work: &mut Work,
        assignment: &WireguardAssignment,
    ) -> Result<bool, TunnelError> {
        let (node, address, relays) = (self.options.node, assignment.address, assignment.relays);
        let enabled = blocking(move || allow_ipv6(relays)).await;
        enabled.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TunnelError::NoIpv6,
            _ => TunnelError::Interface("allow IPv6 on", error),
        })?;
        let outcome = on_netlink(work, move |netlink| {
            let (interface, uplink) = link::observe(netlink, DEVICE, node)?;
            let gone = || io::Error::from(io::ErrorKind::NotFound);
            let interface = interface.ok_or_else(gone)?;
            let Some(uplink) = uplink else { return Ok(None) };
            link::set_up(netlink, &interface, address, uplink).map(Some)
        });
        let outcome = outcome.await.map_err(|error| TunnelError::Interface("set up", error))?;
        outcome.ok_or(TunnelError::NoUplink(node))
    }

    /// Nothing that belongs inside may leave in the clear, and nothing may come in from outside.
    async fn guard(&self, work: &mut Work) {
        let mut guard = std::mem::take(&mut work.guard);
        let (guard, outcome) = blocking(move || {
            let outcome = guard.ensure(Place::Here, TABLE, Some(&rules()));
            (guard, outcome)
        })
        .await;
        (work.guard, work.guarded) = (guard, true);
        self.state.lock().unguarded = outcome.err().map(|error| {
            format!("tunnels are not shielded from the network outside: {}", errors::chain(&error))
        });
    }

    async fn take_down(&self, work: &mut Work) -> Result<(), TunnelError> {
        let node = self.options.node;
        let there = on_netlink(work, move |netlink| Ok(link::observe(netlink, DEVICE, node)?.0));
        let there = there.await.map_err(|error| TunnelError::Interface("look at", error))?;
        if let Some(interface) = there.filter(|interface| interface.kind != Kind::Other) {
            // A process ends with its interface.
            let index = interface.index;
            let removed = on_netlink(work, move |netlink| link::remove(netlink, index)).await;
            removed.map_err(|error| TunnelError::Interface("remove", error))?;
            tracing::info!("tunnels removed");
        }
        if work.carrier.take().is_some() || work.guarded {
            detached::evict(&self.socket()).await.map_err(TunnelError::Process)?;
            let mut guard = std::mem::take(&mut work.guard);
            let removed = blocking(move || guard.ensure(Place::Here, TABLE, None)).await;
            work.guarded = removed.is_err();
        }
        work.told.clear();
        let mut state = self.state.lock();
        (state.actual, state.carrier, state.unguarded) = (Actual::default(), None, None);
        Ok(())
    }
}

/// The addresses of peers that a change adds.
fn begun(change: &Change, actual: &Actual) -> BTreeSet<Ipv6Addr> {
    let added = change.peers.iter().filter(|(key, _)| !actual.peers.contains_key(key));
    let addresses = added.filter_map(|(_, change)| match change {
        PeerChange::Set { addresses, .. } => addresses.clone(),
        PeerChange::Remove => None,
    });
    addresses.flatten().collect()
}

/// Sends each a packet that means nothing: the device calls whoever it has no session with.
fn call(addresses: impl Iterator<Item = Ipv6Addr>) {
    let Ok(socket) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return };
    for address in addresses {
        // What cannot be sent now is sent by whoever has something to say.
        let _ = socket.send_to(&[], (address, DISCARD));
    }
}

fn rules() -> String {
    let ((prefix, length), vxlan) = (TUNNEL_PREFIX, TUNNEL_VXLAN_PORT);
    let ours = format!("{{ \"{DEVICE}\", \"lo\" }}");
    format!(
        "chain in {{\n type filter hook prerouting priority -310; policy accept;\n \
         ip6 daddr {prefix}/{length} iifname != {ours} drop\n \
         udp dport {vxlan} iifname != {ours} drop\n}}\n\
         chain out {{\n type filter hook postrouting priority 310; policy accept;\n \
         ip6 daddr {prefix}/{length} oifname != {ours} drop\n}}"
    )
}

/// Lets the interface have IPv6 addresses, and pass packets on if other nodes need that.
fn allow_ipv6(relays: bool) -> io::Result<()> {
    const FOLDER: &str = "/proc/sys/net/ipv6/conf";
    let set = |interface: &str, setting: &str, from: &str, to: &str| {
        let path = format!("{FOLDER}/{interface}/{setting}");
        if fs::read_to_string(&path)?.trim() == from { fs::write(&path, to) } else { Ok(()) }
    };
    set(DEVICE, "disable_ipv6", "1", "0")?;
    if relays && fs::read_to_string(format!("{FOLDER}/all/forwarding"))?.trim() == "0" {
        // A machine that passes packets on does not listen to routers any more, unless it is told to.
        for interface in fs::read_dir(FOLDER)?.filter_map(Result::ok) {
            let _ = set(&interface.file_name().to_string_lossy(), "accept_ra", "1", "2");
        }
        set("all", "forwarding", "0", "1")?;
    }
    Ok(())
}

/// Uses the socket, and gives it up if it fails: what it would answer next belongs to what failed.
async fn on_netlink<T: Send + 'static>(
    work: &mut Work,
    question: impl FnOnce(&mut Netlink) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let netlink = work.netlink.take();
    let (netlink, answer) = blocking(move || {
        let mut netlink = match netlink.map_or_else(Netlink::open, Ok) {
            Ok(netlink) => netlink,
            Err(error) => return (None, Err(error)),
        };
        let answer = question(&mut netlink);
        (answer.is_ok().then_some(netlink), answer)
    })
    .await;
    work.netlink = netlink;
    answer
}

fn now(clock: &dyn Clock) -> Timestamp {
    Timestamp(clock.now().0)
}
