//! Connections of one route: accepted, given to an endpoint, and copied until both ends are done, or the endpoint is gone with its node.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use wharf_process::Tasks;

use crate::{
    GatewayOptions, client,
    draining::Draining,
    route::{Backend, Claim, RouteState},
};

/// After an error of accepting that may be lasting: no more files may be opened.
const PAUSE: Duration = Duration::from_millis(50);
/// Before endpoints that did not take a connection are asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// Silence after which an end is asked whether it is still there; connections may be silent for ever, but not with the dead.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// What is copied at once, each way.
const BUFFER: usize = 16 << 10;

/// Accepts until `stop`; the listener is closed when this returns. Connections go on.
pub(crate) async fn serve(
    listener: TcpListener,
    route: Arc<RouteState>,
    options: GatewayOptions,
    (tasks, draining): (Tasks, Arc<Draining>),
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            // Cancel-safe: it is the end.
            () = stop.cancelled() => return,
            // Cancel-safe: a connection is accepted or still in the kernel's queue.
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, from)) => {
                let (route, connected) = (Arc::clone(&route), draining.client());
                tasks.spawn("gateway connection", async move {
                    let _connected = connected;
                    if let Err(error) = connection(client, from, &route, &options).await {
                        tracing::debug!(%error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(
    mut client: TcpStream,
    from: SocketAddr,
    route: &Arc<RouteState>,
    options: &GatewayOptions,
) -> io::Result<()> {
    prepare(&client)?;
    let Some((mut server, claim)) = connect(from, route, options).await else {
        route.failures.fetch_add(1, Ordering::Relaxed);
        // Not an orderly end: the client must not take it for an empty answer.
        return reset(&client);
    };
    let _open = route.opened();
    let copied = tokio::select! {
        // Dropped when its other end is gone: then whatever of it is not passed on yet is lost with that.
        copied = copy_both(&mut client, &mut server, route) => copied,
        // Cancel-safe: waits for a flag.
        () = claim.backend.gone() => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if copied.is_err() {
        // What one end did, the other is told.
        let (client, server) = (reset(&client), reset(&server));
        client.and(server)?;
    }
    copied
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Lets the stream end with a reset when it is dropped.
fn reset(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// An endpoint that took the connection; none if none did in the time a client is kept waiting.
async fn connect(
    client: SocketAddr,
    route: &RouteState,
    options: &GatewayOptions,
) -> Option<(TcpStream, Claim)> {
    let until = Instant::now() + options.hold;
    let mut changes = route.changes();
    let mut tried = Vec::new();
    loop {
        changes.mark_unchanged();
        while let Some(claim) = route.claim(&tried) {
            let endpoint = claim.backend.endpoint;
            match timeout_at(until, reach(client, &claim.backend, route, options)).await {
                // Left the table while it took the connection: nothing was sent yet, and nothing shall be.
                Ok(Ok(_)) if claim.backend.is_retired() => {}
                Ok(Ok(stream)) if prepare(&stream).is_ok() => return Some((stream, claim)),
                Ok(Ok(_) | Err(_)) => {
                    claim.backend.failed();
                    route.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => return None,
            }
            tried.push(endpoint);
        }
        // None is there, or none took it: a new one is waited for, and those that failed are asked again.
        let again = Instant::now() + if tried.is_empty() { options.hold } else { AGAIN };
        if let Ok(Err(_gone)) = timeout_at(again.min(until), changes.changed()).await {
            return None;
        }
        if Instant::now() >= until {
            return None;
        }
        tried.clear();
    }
}

/// A connection to an endpoint: from the client's address if that is possible, else from the gateway's.
async fn reach(
    client: SocketAddr,
    backend: &Backend,
    route: &RouteState,
    options: &GatewayOptions,
) -> io::Result<TcpStream> {
    let address = backend.endpoint.address;
    let in_time = || io::Error::from(io::ErrorKind::TimedOut);
    if let Some(way) = backend.way(client) {
        match timeout(options.connect_timeout, client::tcp(way)).await.map_err(|_| in_time()).flatten() {
            Ok(stream) => {
                route.kept.fetch_add(1, Ordering::Relaxed);
                return Ok(stream);
            }
            // That was its answer, and came back. What refuses IPv6 may listen on IPv4.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && way.to.is_ipv4() => {
                return Err(error);
            }
            Err(error) => {
                // One that is gone is not reached from here either: then it is not about the client's address.
                let plain = timeout(options.connect_timeout, TcpStream::connect(address)).await;
                let plain = plain.map_err(|_| in_time()).flatten()?;
                route.fell_back(backend, way, &error);
                return Ok(plain);
            }
        }
    }
    timeout(options.connect_timeout, TcpStream::connect(address)).await.map_err(|_| in_time()).flatten()
}

/// Copies both ways until both are done. An end that is done with sending may go on receiving for as long as it likes.
async fn copy_both(client: &mut TcpStream, server: &mut TcpStream, route: &RouteState) -> io::Result<()> {
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let there = copy(client_read, server_write, &route.received);
    let back = copy(server_read, client_write, &route.sent);
    // The first that fails ends the other.
    tokio::try_join!(there, back).map(|_| ())
}

async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, bytes: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}
