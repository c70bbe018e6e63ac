//! Finds out how this node's side of its networks is, for a server that compares it with what should be.
//!
//! - Facts only: nothing here knows what is right, and nothing is changed except by the repair that runs every few seconds anyway.
//! - From outside: the kernel is read and names are asked as another program would, so that an error of the agent's own is found, too.
//! - Probes are bounded in number and time; a probe from a container's namespace needs nothing of the container's image.

mod kernel;
mod names;
pub(crate) mod ping;

use std::{
    collections::{BTreeMap, btree_map},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use futures::{StreamExt as _, stream, stream::BoxStream};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpSocket, UdpSocket},
    time::{Instant, timeout},
};
use wharf_api::{
    transport::diagnose::{
        Heard, Inside, ListenRequest, Look, LookRequest, Mended, Outcome, PathFacts, PathRequest, Probe,
        ProbeAnswer, ProbeKind, ProbeRequest, Route,
    },
    v1::Code,
};
use wharf_model::TaskId;
use wharf_process::blocking;

use self::{
    kernel::Links,
    ping::{Echo, echo},
};
use crate::{
    network::{VXLAN_PORT, netlink::Netlink},
    node::NodeAgent,
    session::Refusal,
};

/// Probes of one request.
const PROBES: usize = 10_000;
/// The longest a probe or a listener may take.
const LONGEST: Duration = Duration::from_secs(30);
/// Connections and questions under way at once.
const AT_ONCE: usize = 64;

/// Programs that the node's network needs.
const TOOLS: [&str; 2] = ["nft", "iptables"];
/// Where programs are.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Settings that decide over forwarded and bridged packets.
const SYSCTLS: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
];

/// Looks at the node.
pub(crate) async fn look(agent: &NodeAgent, request: LookRequest) -> Look {
    let repair_error = if request.repair { agent.plane().repair().await.err() } else { None };
    let set = agent.held_set();
    let networks = || set.iter().flat_map(|set| &set.networks);
    let names: BTreeMap<u32, _> = networks().map(|(id, network)| (network.vni, *id)).collect();
    let digests = set.iter().flat_map(|set| {
        set.networks.keys().filter_map(|id| Some((*id, wharf_api::transport::diagnose::digest(set, *id)?)))
    });
    let within = Duration::from_millis(request.mended_within);
    let mended = agent.plane().mends().into_iter().filter(|mend| mend.at.elapsed() <= within);
    let mended = mended.map(|mend| Mended {
        network: names.get(&mend.vni).copied(),
        vni: mend.vni,
        fault: mend.fault.to_owned(),
        count: mend.count,
        ago: u64::try_from(mend.at.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    let report = agent.report();
    let mut look = Look {
        now: agent.now().0,
        networks: digests.collect(),
        held: set.as_ref().map_or(0, |set| set.revision.0),
        observed: report.as_ref().map_or(0, |report| report.observed.0),
        mended: mended.collect(),
        repair_error,
        problems: report.map(|report| report.problems).unwrap_or_default(),
        missing_tools: missing_tools(),
        vxlan_port: VXLAN_PORT,
        ..Look::default()
    };
    let address = agent.address();
    let machine = blocking(move || look_at_machine(address)).await;
    match machine {
        Ok(machine) => {
            (look.sysctls, look.routes, look.port_users, look.uplink) =
                (machine.sysctls, machine.routes, machine.port_users, machine.uplink);
        }
        Err(error) => {
            look.repair_error.get_or_insert(format!("the kernel's tables cannot be read: {error}"));
        }
    }
    look
}

fn missing_tools() -> Vec<String> {
    let is_there = |tool: &&str| FOLDERS.iter().any(|folder| PathBuf::from(folder).join(tool).exists());
    TOOLS.into_iter().filter(|tool| !is_there(tool)).map(str::to_owned).collect()
}

/// What is the machine's own.
struct Machine {
    sysctls: BTreeMap<String, String>,
    routes: Vec<(ipnet::IpNet, String)>,
    port_users: Vec<String>,
    uplink: Option<(String, u32)>,
}

fn look_at_machine(address: IpAddr) -> io::Result<Machine> {
    let mut netlink = Netlink::open()?;
    let links = Links::read(&mut netlink)?;
    let read = |name: &str| {
        let text = std::fs::read_to_string(PathBuf::from("/proc/sys").join(name)).ok()?;
        Some((name.to_owned(), text.trim().to_owned()))
    };
    let mut routes = kernel::routes(&mut netlink, &links)?;
    routes.retain(|(_, device)| !is_ours(device));
    let foreign = links.all().filter(|link| !is_ours(&link.device.name)).filter_map(|link| {
        let port = link.vxlan.as_ref().filter(|port| port.port == VXLAN_PORT)?;
        Some(format!("the VXLAN device {} (identifier {})", link.device.name, port.vni))
    });
    let mut port_users: Vec<String> = foreign.collect();
    let tables =
        ["/proc/net/udp", "/proc/net/udp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<u64> = tables.iter().flat_map(|table| sockets_at(table, VXLAN_PORT)).collect();
    if !sockets.is_empty() {
        port_users.extend(holders(&sockets));
    }
    let uplink = links.with_address(address).map(|link| (link.device.name.clone(), link.device.mtu));
    Ok(Machine {
        sysctls: SYSCTLS.iter().filter_map(|name| read(name)).collect(),
        routes,
        port_users,
        uplink,
    })
}

/// Whether a device has a name that we give: `wh…` or `wv…` and a number in hexadecimal, or a tunnel's.
fn is_ours(device: &str) -> bool {
    let number = device.strip_prefix("wh").or_else(|| device.strip_prefix("wv"));
    number.is_some_and(|digits| !digits.is_empty() && u32::from_str_radix(digits, 16).is_ok())
        || device.starts_with("wharf")
}

/// The sockets at this port, by the table of UDP sockets; the kernel's own are among them.
fn sockets_at(table: &str, port: u16) -> Vec<u64> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit(':').next()?;
        let inode = fields.get(9)?.parse().ok()?;
        (u16::from_str_radix(local, 16).ok()? == port).then_some(inode)
    };
    table.lines().skip(1).filter_map(socket).collect()
}

/// The programs that hold one of these sockets. The kernel's own are held by none.
fn holders(sockets: &[u64]) -> Vec<String> {
    let links: Vec<PathBuf> = sockets.iter().map(|inode| format!("socket:[{inode}]").into()).collect();
    let mut found = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    // `self` and `thread-self` are there as well.
    let is_number = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    for process in processes.filter(|process| is_number(&process.file_name())) {
        // A process that ended meanwhile holds nothing; those of others cannot be read without root.
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut held = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if !links.is_empty() && held.any(|link| links.contains(&link)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (process {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    found
}

/// Where sockets are made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Here,
    /// In the network namespace with this file.
    At(PathBuf),
}

impl Place {
    /// Runs `work` in the namespace, on a thread of its own that ends with it: what it opens stays there.
    fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Self::At(path) = self else { return work() };
        let file = File::open(path)?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// The network namespace of a task's container.
async fn place_of(agent: &NodeAgent, task: Option<TaskId>) -> Result<Place, String> {
    let Some(task) = task else { return Ok(Place::Here) };
    let said = agent.inspect(task).await.map_err(|error| error.to_string())?;
    match said["State"]["Pid"].as_u64() {
        Some(process) if process > 0 => Ok(Place::At(format!("/proc/{process}/ns/net").into())),
        _ => Err("its container does not run".to_owned()),
    }
}

/// Makes probes.
///
/// # Errors
/// If there are too many.
pub(crate) async fn probe(agent: &NodeAgent, request: ProbeRequest) -> Result<ProbeAnswer, Refusal> {
    if request.probes.len() > PROBES {
        let message = format!("{} probes at once are too many: {PROBES} are the most", request.probes.len());
        return Err(Refusal::new(Code::Invalid, message));
    }
    let patience = Duration::from_millis(request.timeout).min(LONGEST);
    let mut places: BTreeMap<Option<TaskId>, Result<Place, String>> = BTreeMap::new();
    for probe in &request.probes {
        if let btree_map::Entry::Vacant(place) = places.entry(probe.inside) {
            place.insert(place_of(agent, probe.inside).await);
        }
    }
    let mut outcomes: Vec<Option<Outcome>> = vec![None; request.probes.len()];
    let mut echoes: BTreeMap<Place, Vec<(usize, Echo)>> = BTreeMap::new();
    let mut others = Vec::new();
    for (position, probe) in request.probes.into_iter().enumerate() {
        let place = match &places[&probe.inside] {
            Ok(place) => place.clone(),
            Err(reason) => {
                outcomes[position] = Some(Outcome::Impossible(reason.clone()));
                continue;
            }
        };
        let pair = match probe.what {
            ProbeKind::Ping(to) => ping::both_v4(probe.from, to),
            _ => None,
        };
        match pair {
            Some((from, to)) => echoes.entry(place).or_default().push((position, Echo::small(from, to))),
            None => others.push((position, place, probe)),
        }
    }
    let echoes = stream::iter(echoes)
        .map(|(place, echoes)| echo_all(place, echoes, patience))
        .buffer_unordered(AT_ONCE);
    let others = stream::iter(others)
        .map(|(position, place, probe)| async move { (position, other(place, probe, patience).await) });
    let (echoed, others): (Vec<_>, Vec<_>) =
        tokio::join!(echoes.collect(), others.buffer_unordered(AT_ONCE).collect());
    for (position, outcome) in echoed.into_iter().flatten().chain(others) {
        outcomes[position] = Some(outcome);
    }
    let unmade = || Outcome::Impossible("it was not made".to_owned());
    Ok(ProbeAnswer { outcomes: outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unmade)).collect() })
}

async fn echo_all(place: Place, all: Vec<(usize, Echo)>, patience: Duration) -> Vec<(usize, Outcome)> {
    blocking(move || {
        let echoes: Vec<Echo> = all.iter().map(|(_, echo)| *echo).collect();
        let outcomes = match place.run(ping::open) {
            Ok(socket) => echo(&socket, &echoes, patience).into_iter().map(echoed).collect(),
            Err(error) => vec![Outcome::Impossible(error.to_string()); echoes.len()],
        };
        all.into_iter().map(|(position, _)| position).zip(outcomes).collect()
    })
    .await
}

fn echoed(outcome: ping::Echoed) -> Outcome {
    match outcome {
        Ok(Some(took)) => Outcome::Answered(micros(took)),
        Ok(None) => Outcome::Silent,
        Err(error) => failed(&error),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn failed(error: &io::Error) -> Outcome {
    Outcome::Impossible(match error.raw_os_error() {
        Some(nix::libc::EPERM) => "a rule of this node's own firewall drops it".to_owned(),
        _ => error.to_string(),
    })
}

/// Every probe that is no echo request by IPv4.
async fn other(place: Place, probe: Probe, patience: Duration) -> Outcome {
    let from = probe.from;
    let outcome = match probe.what {
        ProbeKind::Ping(to) => {
            let (IpAddr::V6(to), from) = (to, from.and_then(v6)) else {
                return Outcome::Impossible("the addresses are of different families".into());
            };
            return blocking(move || echoed(place.run(|| ping::echo6(from, to, patience)))).await;
        }
        ProbeKind::LargestPacket { to, up_to } => {
            blocking(move || largest(&place, from.and_then(v4), to, up_to, patience)).await
        }
        ProbeKind::Tcp(to) => connect(place, from, to, patience).await,
        ProbeKind::Udp(to) => ask_by_udp(place, from, to, patience).await,
        ProbeKind::Datagram { to, text } => send(place, from, to, text).await,
        ProbeKind::Dns { server, tcp: false, names } => {
            names::by_udp(&place, from, server, &names, patience).await.map(Outcome::Names)
        }
        ProbeKind::Dns { server, tcp: true, names } => {
            names::by_tcp(&place, from, server, &names, patience).await.map(Outcome::Names)
        }
    };
    outcome.unwrap_or_else(|error| failed(&error))
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

const fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

fn largest(
    place: &Place,
    from: Option<Ipv4Addr>,
    to: Ipv4Addr,
    up_to: u16,
    patience: Duration,
) -> io::Result<Outcome> {
    let (socket, of) = place.run(|| {
        let of = match (up_to, from) {
            (0, Some(from)) => {
                let links = Links::read(&mut Netlink::open()?)?;
                let link = links.with_address(from.into());
                link.map_or(1500, |link| u16::try_from(link.device.mtu).unwrap_or(u16::MAX))
            }
            (0, None) => 1500,
            (size, _) => size,
        };
        Ok((ping::open()?, of))
    })?;
    Ok(Outcome::Largest { of, bytes: ping::largest(&socket, from, to, of, patience)? })
}

async fn connect(
    place: Place,
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<Outcome> {
    let socket = socket_in(&place, Type::STREAM, from, to).await?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let started = Instant::now();
    Ok(match timeout(patience, socket.connect(to)).await {
        Ok(Ok(_stream)) => Outcome::Answered(micros(started.elapsed())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Outcome::Refused(micros(started.elapsed()))
        }
        Ok(Err(error)) => return Err(error),
        Err(_late) => Outcome::Silent,
    })
}

async fn ask_by_udp(
    place: Place,
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<Outcome> {
    let socket = socket_in(&place, Type::DGRAM, from, to).await?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(to).await?;
    let mut buffer = [0_u8; 64];
    // One may be lost.
    for _ in 0..DATAGRAMS {
        let started = Instant::now();
        socket.send(&[]).await?;
        match timeout(patience / DATAGRAMS, socket.recv(&mut buffer)).await {
            Ok(Ok(_)) => return Ok(Outcome::Answered(micros(started.elapsed()))),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Ok(Outcome::Refused(micros(started.elapsed())));
            }
            Ok(Err(error)) => return Err(error),
            Err(_late) => {}
        }
    }
    Ok(Outcome::Silent)
}

/// So many are sent before nobody counts as there.
const DATAGRAMS: u32 = 3;

async fn send(place: Place, from: Option<IpAddr>, to: SocketAddr, text: String) -> io::Result<Outcome> {
    blocking(move || {
        let socket = place.run(|| socket(Type::DGRAM, from, to))?;
        // More than one: a first one may be lost to address resolution.
        for _ in 0..DATAGRAMS {
            socket.send_to(text.as_bytes(), &to.into())?;
        }
        Ok(Outcome::Sent)
    })
    .await
}

/// A socket in a place; it stays there, whoever uses it.
async fn socket_in(place: &Place, kind: Type, from: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    let place = place.clone();
    blocking(move || place.run(|| socket(kind, from, to))).await
}

fn socket(kind: Type, from: Option<IpAddr>, to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    socket.set_nonblocking(true)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    Ok(socket)
}

/// Says what is heard at these addresses, until the time is over.
pub(crate) async fn listen(request: ListenRequest) -> BoxStream<'static, Heard> {
    let mut sockets = Vec::new();
    let mut at = Vec::new();
    for address in request.at {
        let socket = UdpSocket::bind(SocketAddr::new(address, 0)).await.ok();
        at.push(socket.as_ref().and_then(|socket| socket.local_addr().ok()));
        sockets.extend(socket);
    }
    let until = Instant::now() + Duration::from_millis(request.millis).min(LONGEST);
    let heard = sockets.into_iter().map(|socket| {
        stream::unfold(socket, move |socket| async move {
            let mut buffer = [0_u8; 256];
            let left = until.saturating_duration_since(Instant::now());
            let length = timeout(left, socket.recv(&mut buffer)).await.ok()?.ok()?;
            Some((Heard::Text(String::from_utf8_lossy(&buffer[..length]).into_owned()), socket))
        })
        .boxed()
    });
    stream::once(async move { Heard::At(at) }).chain(stream::select_all(heard)).boxed()
}

/// Reads what the kernel has about a pair of addresses.
///
/// # Errors
/// If its tables cannot be read.
pub(crate) async fn path(agent: &NodeAgent, request: PathRequest) -> Result<PathFacts, Refusal> {
    let place = place_of(agent, request.task).await;
    let read = blocking(move || read_path(&request, place)).await;
    read.map_err(|error| {
        Refusal::new(Code::Unavailable, format!("the kernel's tables cannot be read: {error}"))
            .hint("the agent has to run as root")
    })
}

fn read_path(request: &PathRequest, place: Result<Place, String>) -> io::Result<PathFacts> {
    let mut netlink = Netlink::open()?;
    let links = Links::read(&mut netlink)?;
    let (bridge, port) = (format!("wh{:x}", request.vni), format!("wv{:x}", request.vni));
    let peer = (request.there, request.mac);
    let entries = kernel::entries(&mut netlink, &links, (&bridge, &port), peer)?;
    let found = links.named(&bridge);
    let mut facts = PathFacts {
        bridge: found.map(|link| link.device.clone()),
        bridge_addresses: found.map(|link| link.addresses.clone()).unwrap_or_default(),
        switching: entries.switching,
        port: links.named(&port).and_then(|link| link.vxlan.clone()),
        forwarding: entries.forwarding,
        neighbour: entries.neighbour,
        route: Some(kernel::route_to(&mut netlink, &links, request.there.into())?),
        ..PathFacts::default()
    };
    if let Some(node) = request.node {
        facts.underlay = Some(kernel::route_to(&mut netlink, &links, node)?);
    }
    match place {
        Ok(Place::Here) => {}
        Ok(place @ Place::At(_)) => match place.run(|| read_inside(request)) {
            Ok((mut inside, outside)) => {
                inside.outside =
                    outside.and_then(|index| links.numbered(index)).map(|link| link.device.clone());
                facts.inside = Some(inside);
            }
            Err(error) => facts.inside_error = Some(error.to_string()),
        },
        Err(reason) => facts.inside_error = Some(reason),
    }
    Ok(facts)
}

/// What a container's own namespace has, and the number of the other end of its interface.
fn read_inside(request: &PathRequest) -> io::Result<(Inside, Option<u32>)> {
    let mut netlink = Netlink::open()?;
    let links = Links::read(&mut netlink)?;
    let link = links.with_address(request.here.into());
    let route: Route = kernel::route_to(&mut netlink, &links, request.there.into())?;
    let neighbour = match link {
        Some(link) => kernel::neighbour(&mut netlink, link, request.there)?,
        None => None,
    };
    let inside =
        Inside { device: link.map(|link| link.device.clone()), outside: None, route: Some(route), neighbour };
    Ok((inside, link.and_then(|link| link.peer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_devices_are_told_from_others() {
        assert!(is_ours("wh1f") && is_ours("wv1f") && is_ours("wharf0"));
        assert!(!is_ours("wh") && !is_ours("whale") && !is_ours("eth0") && !is_ours("docker0"));
    }

    #[test]
    fn a_program_at_a_port_is_found_by_its_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let sockets = sockets_at(&std::fs::read_to_string("/proc/net/udp").unwrap(), port);
        let own = format!("(process {})", std::process::id());
        let found = holders(&sockets);
        assert!(found.len() == 1 && found[0].ends_with(&own), "{found:?}");
        assert!(holders(&[u64::MAX]).is_empty(), "the kernel's own sockets are held by no program");
    }

    #[tokio::test]
    async fn a_listener_says_where_it_listens_and_then_what_it_hears() {
        let request = ListenRequest { at: vec![Ipv4Addr::LOCALHOST.into()], millis: 20_000 };
        let mut heard = listen(request).await;
        let Some(Heard::At(at)) = heard.next().await else { panic!("the first line says where") };
        let to = at[0].unwrap();
        assert_eq!(send(Place::Here, None, to, "n1".into()).await.unwrap(), Outcome::Sent);
        assert_eq!(heard.next().await, Some(Heard::Text("n1".into())));
    }

    #[tokio::test]
    async fn a_port_that_nobody_has_refuses_and_one_that_somebody_has_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let patience = Duration::from_secs(10);
        let answered = connect(Place::Here, None, to, patience).await.unwrap();
        assert!(matches!(answered, Outcome::Answered(_)), "{answered:?}");
        drop(listener);
        let refused = connect(Place::Here, None, to, patience).await.unwrap();
        assert!(matches!(refused, Outcome::Refused(_)), "{refused:?}");
    }
}
