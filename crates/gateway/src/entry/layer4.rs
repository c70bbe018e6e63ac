//! Connections whose bytes nobody looks at: given to a task of their route, and passed on until both ends are done.
//!
//! - Until a task has taken the connection, its failure is not the client's: another one is tried, and a table that has one is waited for as
//!   long as the gateway holds requests.
//! - A task that left the table while it took the connection is sent nothing.
//! - A connection may be silent for ever, unless its route says otherwise; but not with the dead: they are asked whether they are there.
//! - A client that no task takes sees a reset, and no orderly end that it could take for an empty answer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use socket2::{SockRef, TcpKeepalive};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use wharf_model::RouteId;

use super::Conversation;
use crate::{
    client,
    http::{
        Ask, Choice, Failure, Moment,
        entry::Entry,
        table::{Backend, Lease, Route},
        upgrade::Tunnel,
        worker::Worker,
    },
    proxy_protocol::{self, Proxied},
};

/// Before tasks that did not take a connection are asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// Silence after which an end is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Without a time for silence in the file: longer than processes live.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Passes a connection on to a task of this route until it is over.
pub(crate) async fn pass(worker: &Arc<Worker>, conversation: Conversation, id: RouteId) {
    let Conversation { mut stream, client, destination, secure } = conversation;
    keep_alive(stream.tcp());
    let name = secure.as_ref().and_then(|secure| secure.server_name.clone());
    let whom =
        Whom { client, destination, secure: secure.is_some(), name: name.as_deref().unwrap_or_default() };
    let passed = match connect(worker, &whom, &id).await {
        Ok((server, lease)) => {
            let idle = lease.route().spec().timeouts.idle.map_or(FOR_EVER, wharf_model::Millis::duration);
            let watch = worker.watch(worker.now().plus(idle));
            let tunnel = Tunnel { stream: server, read: Bytes::new(), lease, idle, entry: Entry::default() };
            tunnel.run(&mut stream, Bytes::new(), worker, &watch).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = passed {
        tracing::debug!(%error, %client, route = %id, "connection ended");
        // What the task did, or that nobody is there, the client is told.
        let _ = SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
    }
}

fn keep_alive(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Whose connection it is.
struct Whom<'c> {
    client: SocketAddr,
    destination: SocketAddr,
    secure: bool,
    /// The server's name that it said.
    name: &'c str,
}

/// A task that took the connection.
async fn connect(worker: &Worker, whom: &Whom<'_>, id: &RouteId) -> io::Result<(TcpStream, Lease)> {
    let http = &worker.http;
    let began = Moment::now();
    let until = began.plus(http.options.hold);
    let mut changes = http.changed.subscribe();
    let headers = HeaderMap::new();
    let (mut tried, mut place) = (Vec::new(), None);
    let mut admitted = false;
    loop {
        changes.mark_unchanged();
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the route is gone");
        let route = http.table.load().by_id(id).map(Arc::clone).ok_or_else(gone)?;
        let ask = Ask {
            port: whom.destination.port(),
            secure: whom.secure,
            client: whom.client.ip(),
            method: &Method::GET,
            host: whom.name,
            path: "/",
            headers: &headers,
            now: Moment::now(),
        };
        if !std::mem::replace(&mut admitted, true) {
            let refused = |refusal: crate::http::Refusal| io::Error::other(refusal.reason);
            route.admit(&ask).await.map_err(refused)?;
        }
        match route.choose(&ask, &tried, place.take()) {
            Choice::Lease(mut lease) => {
                let backend = Arc::clone(lease.backend());
                match reach(&route, &backend, whom).await {
                    // Nothing was sent that the task could act on, and nothing shall be.
                    Ok(_) if backend.is_retired() => {}
                    Ok(stream) => {
                        let now = Moment::now();
                        lease.answered(StatusCode::OK, now.since(began), now);
                        return Ok((stream, lease));
                    }
                    Err(error) => {
                        let failure = match error.kind() {
                            io::ErrorKind::TimedOut => Failure::Timeout,
                            _ => Failure::Connect,
                        };
                        lease.failed(failure, Moment::now());
                        tracing::debug!(%error, endpoint = %backend.endpoint.address, "connection not taken");
                    }
                }
                tried.push(backend);
            }
            Choice::Wait(mut turn) => {
                turn.turn().await.map_err(|refusal| io::Error::other(refusal.reason))?;
                place = Some(turn);
            }
            Choice::Again(kept) => place = kept,
            Choice::Nobody { refusal, hold } => {
                let now = Moment::now();
                if !hold || now >= until {
                    route.refused(&refusal);
                    return Err(io::Error::other(refusal.reason));
                }
                // A new table is waited for; and those that failed are asked again.
                let left = until.since(now);
                let pause = if tried.is_empty() { left } else { AGAIN.min(left) };
                if let Ok(Err(_gone)) = timeout(pause, changes.changed()).await {
                    return Err(io::Error::other(refusal.reason));
                }
                tried.clear();
            }
        }
    }
}

/// A connection to a task: from the client's address where its answers come back and it is not told of the client otherwise.
async fn reach(route: &Route, backend: &Backend, whom: &Whom<'_>) -> io::Result<TcpStream> {
    let connecting = async {
        let mut stream = dial(route, backend, whom.client).await?;
        stream.set_nodelay(true)?;
        keep_alive(&stream);
        if route.proxy_protocol {
            let proxied = Proxied { source: whom.client, destination: whom.destination };
            stream.write_all(&proxy_protocol::header(proxied)).await?;
        }
        Ok(stream)
    };
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    timeout(route.timeouts.connect, connecting).await.map_err(|_| late()).flatten()
}

async fn dial(route: &Route, backend: &Backend, client: SocketAddr) -> io::Result<TcpStream> {
    let way = client::way(client, &backend.newest()).filter(|_| !route.proxy_protocol);
    if let Some(way) = way {
        match timeout(route.timeouts.connect / 2, client::tcp(way)).await {
            Ok(Ok(stream)) => return Ok(stream),
            // That was its answer, and came back.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
            // A client is worse known then, but never worse served.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    TcpStream::connect(backend.endpoint.address).await
}
