//! WireGuard for kernels that have none: a process of its own with a TUN device, configured over a Unix socket.
//!
//! - It knows nothing of Wharf, keeps nothing on disk, and outlives the agent, its restarts and its upgrades: tunnels do not notice them.
//! - The TUN device outlives the process: addresses and routes stay, packets wait for nobody, and the next process takes it over.
//! - Who asks is whoever may enter the socket's folder: root.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use gotatun::{
    device::{self, Device, Peer},
    packet::{Packet, PacketBufPool},
    tun::tun_async_device::TunDevice,
    udp::{
        UdpRecv, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{UdpSocket, UdpSocketFactory},
    },
    x25519,
};
use tokio::time::Instant;
use wharf_model::PublicKey;
use wharf_process::{
    Tasks,
    detached::{self, Caller, Door},
};

use super::{
    plan::{Actual, ActualPeer, Change, PeerChange},
    uapi::{Request, read_request, write_answer},
};

/// Room for packets that arrive while others are being decrypted; the kernel may give less.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long the process before may take to let go of the device.
const HAND_OVER: Duration = Duration::from_secs(5);

type Tunnels = Device<(KeptSocket, TunDevice, TunDevice)>;

/// The socket of the tunnels. A device that changes its key asks for a new one; it gets the same: packets that arrive meanwhile wait in it.
/// Not before the last reader is gone, who would take one and lose it.
struct KeptSocket {
    factory: UdpSocketFactory,
    kept: Option<(u16, UdpSocket)>,
    /// Held by every reader.
    readers: Arc<()>,
}

impl UdpTransportFactory for KeptSocket {
    type Send = UdpSocket;
    type Recv = Reader;

    async fn bind(&mut self, wanted: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, Reader)> {
        let deadline = Instant::now() + HAND_OVER;
        while Arc::strong_count(&self.readers) > 1 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let socket = match &self.kept {
            Some((port, socket)) if *port == wanted.port => socket.clone(),
            Some(_) | None => {
                let (socket, _) = self.factory.bind(wanted).await?;
                self.kept.insert((wanted.port, socket)).1.clone()
            }
        };
        Ok((socket.clone(), Reader { socket, _held: Arc::clone(&self.readers) }))
    }
}

/// Whoever reads from the socket.
struct Reader {
    socket: UdpSocket,
    _held: Arc<()>,
}

impl UdpRecv for Reader {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        self.socket.recv_from(pool).await
    }
    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        self.socket.recv_many_from(buffer, pool, packets).await
    }
    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

/// Carries tunnels on the TUN device `name` until that is removed, as it is told at `socket`.
///
/// # Errors
/// If the device or the socket cannot be made, or the device was removed.
pub async fn run_device(name: &str, socket: &Path, tasks: &Tasks) -> io::Result<()> {
    // Whoever started this one found nobody who answers.
    detached::evict(socket).await?;
    let tun = open(name).await?;
    let transport = TunDevice::from_tun_device(tun).map_err(io::Error::other)?;
    let factory = UdpSocketFactory { recv_buffer_size: Some(RECEIVE_BUFFER), send_buffer_size: None };
    let builder = device::build().with_udp(KeptSocket { factory, kept: None, readers: Arc::default() });
    let tunnels = builder.with_ip(transport).build().await.map_err(io::Error::other)?;
    let tunnels = Arc::new(tunnels);
    let door = Door::open(socket)?;
    tracing::info!(device = name, "tunnels can be set up");
    loop {
        tokio::select! {
            // Cancel-safe: a caller that was not accepted yet is still there.
            caller = door.accept() => {
                let (tunnels, caller) = (Arc::clone(&tunnels), caller?);
                tasks.spawn("caller", async move { drop(serve(&tunnels, caller).await) });
            }
            () = is_gone(name) => return Err(io::Error::other(format!("the device {name} was removed"))),
        }
    }
}

/// Returns once there is no such device any more.
async fn is_gone(name: &str) {
    let folder = Path::new("/sys/class/net").join(name);
    let proc = format!("{name}:");
    // Whichever of the two shows this process's own network namespace.
    let there = || {
        folder.exists()
            || std::fs::read_to_string("/proc/self/net/dev").is_ok_and(|devices| devices.contains(&proc))
    };
    while there() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The TUN device, which stays when this process ends.
async fn open(name: &str) -> io::Result<tun::AsyncDevice> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name);
    let deadline = Instant::now() + HAND_OVER;
    loop {
        match tun::create_as_async(&configuration) {
            Ok(mut device) => {
                device.persist().map_err(io::Error::other)?;
                return Ok(device);
            }
            Err(error) if Instant::now() >= deadline => {
                return Err(io::Error::other(format!("cannot open the TUN device {name}: {error}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn serve(tunnels: &Tunnels, caller: Caller) -> io::Result<()> {
    let mut link = caller.greet().await?;
    loop {
        let text = String::from_utf8_lossy(&link.read().await?).into_owned();
        let answer = match read_request(&text) {
            Ok(request) => answer(tunnels, request).await,
            Err(error) => error.to_string(),
        };
        link.write(&[answer.as_bytes()]).await?;
    }
}

async fn answer(tunnels: &Tunnels, request: Request) -> String {
    match request {
        Request::Get => write_answer(&actual(tunnels).await),
        Request::Set(change) => match set(tunnels, change).await {
            Ok(()) => "errno=0\n\n".to_owned(),
            Err(error) => error.to_string(),
        },
    }
}

async fn actual(tunnels: &Tunnels) -> Actual {
    let (key, port, peers) = tunnels
        .read(async |device| {
            let key = device.private_key().map(|key| PublicKey(x25519::PublicKey::from(key).to_bytes()));
            (key, device.listen_port(), device.peers().await)
        })
        .await;
    let peer = |there: device::configure::PeerStats| {
        let addresses = there.peer.allowed_ips.iter().filter_map(|network| match network.ip() {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        });
        let peer = ActualPeer {
            endpoint: there.peer.endpoint,
            keepalive: there.peer.keepalive.unwrap_or_default(),
            addresses: addresses.collect(),
            handshake: there.stats.last_handshake,
            received: there.stats.rx_bytes as u64,
            sent: there.stats.tx_bytes as u64,
        };
        (PublicKey(there.peer.public_key.to_bytes()), peer)
    };
    Actual { key, port, peers: peers.into_iter().map(peer).collect() }
}

async fn set(tunnels: &Tunnels, change: Change) -> Result<(), device::Error> {
    tunnels
        .write(async |device| {
            if let Some(key) = change.key {
                device.set_private_key(x25519::StaticSecret::from(key.0)).await;
            }
            if let Some(port) = change.port {
                device.set_listen_port(port);
            }
            for (key, change) in change.peers {
                let key = x25519::PublicKey::from(key.0);
                match change {
                    PeerChange::Remove => drop(device.remove_peer(&key).await),
                    PeerChange::Set { endpoint, keepalive, addresses } => {
                        device.add_peer(Peer::new(key));
                        device
                            .modify_peer(&key, |peer| {
                                if endpoint.is_some() {
                                    peer.set_endpoint(endpoint);
                                }
                                if let Some(keepalive) = keepalive {
                                    peer.set_keepalive(Some(keepalive).filter(|seconds| *seconds > 0));
                                }
                                if let Some(addresses) = addresses {
                                    peer.clear_allowed_ips();
                                    peer.add_allowed_ips(networks(&addresses));
                                }
                            })
                            .await;
                    }
                }
            }
        })
        .await
}

fn networks(addresses: &BTreeSet<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().map(IpAddr::V6)
}
