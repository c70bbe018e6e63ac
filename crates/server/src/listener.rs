//! The one port of a server: accepts connections, finds out who is there, and hands them to the API or to the sessions.
//!
//! - A request's [`Peer`] and `ConnectInfo<SocketAddr>` are among its extensions, whatever it came over.
//! - What kind of peer may ask for what is decided in one place, [`may`], before any handler.
//! - A peer that is refused in the handshake hears why: the connection is not torn down before the alert was read.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, response::IntoResponse};
use http::{Method, Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wharf_api::{
    transport::{
        ALPN_NODE, Peer, PeerKind, Timing,
        client::tune,
        prompt::Prompt,
        reverse::{CONNECTION_WINDOW, MAX_STREAMS, STREAM_WINDOW},
        tls::peer_of,
        wire,
    },
    v1::Code,
};
use wharf_process::{Tasks, errors::chain};

use crate::{http::failure::Failure, sessions::Sessions};

/// How long a peer that was refused may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait after the system refused to accept a connection (too many open files).
const BREATH: Duration = Duration::from_millis(100);

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error("the port of {address} is taken by another process")]
    Taken {
        /// The address.
        address: SocketAddr,
    },
    /// The system refuses.
    #[error("cannot listen on {address}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}
impl BindError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { address } => Some(format!(
                "`ss -ltnp 'sport = :{}'` shows by whom; is a server running already?",
                address.port()
            )),
            Self::Refused { .. } => None,
        }
    }
}

/// The open port.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Opens the port; port 0 takes a free one.
    ///
    /// # Errors
    /// If it is taken or the system refuses.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { address },
            _ => BindError::Refused { address, source },
        };
        let tcp = TcpListener::bind(address).await.map_err(refused)?;
        let address = tcp.local_addr().map_err(|source| BindError::Refused { address, source })?;
        Ok(Self { tcp, address })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections until the tasks shall stop; then finishes the requests that have begun. Every connection is one of `tasks`.
    pub async fn run(
        self,
        tls: Arc<ServerConfig>,
        router: Router,
        sessions: Arc<Sessions>,
        timing: Timing,
        tasks: Tasks,
    ) {
        let door =
            Arc::new(Door { tls: TlsAcceptor::from(tls), router, sessions, timing, stop: tasks.token() });
        let stop = tasks.token();
        // Dropped at an accept: a connection that was not accepted yet is refused by the system, as is meant.
        stop.run_until_cancelled(async {
            loop {
                match self.tcp.accept().await {
                    Ok((stream, from)) => {
                        let door = Arc::clone(&door);
                        tasks.spawn("connection", async move { door.admit(stream, from).await });
                    }
                    Err(error) => {
                        tracing::warn!(error = %error, "connection not accepted");
                        sleep(BREATH).await;
                    }
                }
            }
        })
        .await;
    }
}

struct Door {
    tls: TlsAcceptor,
    router: Router,
    sessions: Arc<Sessions>,
    timing: Timing,
    stop: CancellationToken,
}

impl Door {
    async fn admit(&self, stream: TcpStream, from: SocketAddr) {
        tune(&stream, &self.timing);
        let Some(stream) = self.shake_hands(stream, from).await else { return };
        let (_, tls) = stream.get_ref();
        let peer = match peer_of(tls.peer_certificates()) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%from, error = chain(&error), "connection refused");
                return;
            }
        };
        let is_session = tls.alpn_protocol() == Some(ALPN_NODE);
        match peer.node() {
            Some(node) if is_session => {
                // A session has no requests of its own to finish: it ends when this server stops.
                let _ = self
                    .stop
                    .run_until_cancelled(self.sessions.run(
                        Prompt::new(stream, self.timing.handshake),
                        node,
                        peer,
                        Some(from.ip()),
                    ))
                    .await;
            }
            None if is_session => tracing::warn!(%from, peer = %peer.kind, "session refused: no node"),
            _ => self.serve(stream, peer, from).await,
        }
    }

    async fn shake_hands(&self, stream: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let shaking = self.tls.accept(stream).into_fallible();
        match timeout(self.timing.handshake, shaking).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err((error, stream))) => {
                tracing::info!(%from, error = %error, "connection refused");
                linger(stream).await;
                None
            }
            Err(_) => {
                tracing::debug!(%from, "no TLS handshake in time");
                None
            }
        }
    }

    async fn serve(&self, stream: TlsStream<TcpStream>, peer: Peer, from: SocketAddr) {
        let service = service_fn(|request: Request<Incoming>| self.answer(request, &peer, from));
        let builder = http(&self.timing);
        let mut connection = pin!(builder.serve_connection_with_upgrades(
            TokioIo::new(Prompt::new(stream, self.timing.handshake)),
            service
        ));
        let end = tokio::select! {
            // Polled on below: nothing is dropped.
            end = connection.as_mut() => end,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = end {
            tracing::debug!(%from, peer = %peer.kind, error = &*error, "connection broke");
        }
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
        peer: &Peer,
        from: SocketAddr,
    ) -> impl Future<Output = Result<Response<Body>, std::convert::Infallible>> + Send + 'static {
        let allowed = may(&peer.kind, request.method(), request.uri().path());
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(ConnectInfo(from));
        let router = self.router.clone();
        async move {
            match allowed {
                Ok(()) => router.oneshot(request.map(Body::new)).await,
                Err(failure) => Ok(failure.into_response()),
            }
        }
    }
}

/// Whether a peer may make such a request at all. Anonymous peers join, nodes renew, users and servers use the whole API.
fn may(kind: &PeerKind, method: &Method, path: &str) -> Result<(), Failure> {
    let allowed: &[(&Method, &str)] = match kind {
        PeerKind::User(_) | PeerKind::Server(_) => return Ok(()),
        // Both show a token.
        PeerKind::Anonymous => &[(&Method::POST, wire::JOIN), (&Method::POST, crate::server::JOIN_SERVER)],
        PeerKind::Node(_) => {
            &[
                (&Method::POST, wire::RENEW),
                (&Method::POST, wire::JOIN),
                (&Method::GET, "/v1/version"),
                // Of the images of its own tasks only; the handlers look.
                (&Method::POST, wire::FIND_IMAGE),
                (&Method::POST, wire::FETCH_IMAGE),
                (&Method::POST, wire::NEEDED_IMAGES),
            ]
        }
    };
    if allowed.contains(&(method, path)) {
        return Ok(());
    }
    let failure = match kind {
        PeerKind::Anonymous => Failure::new(Code::Forbidden, "this needs a certificate of the cluster")
            .hint("use a context of this cluster: `wharf context ls`"),
        PeerKind::Node(_) | PeerKind::User(_) | PeerKind::Server(_) => {
            Failure::new(Code::Forbidden, format!("{kind} may not do this")).hint("use a user's context")
        }
    };
    Err(failure)
}

fn http(timing: &Timing) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timing.answer);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(timing.keepalive_interval)
        .keep_alive_timeout(timing.keepalive_timeout);
    builder
}

/// Lets the peer read the alert that ended the handshake: closing with its data unread would reset the connection, and the alert with it.
async fn linger(mut stream: TcpStream) {
    let reading = async {
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(LINGER, reading).await;
}

#[cfg(test)]
mod tests {
    use wharf_model::NodeId;

    use super::*;

    #[test]
    fn whoever_has_no_certificate_may_only_join_and_a_node_is_no_user() {
        let node = PeerKind::Node(NodeId::from_parts(1, [1; 10]));
        let user = PeerKind::User("ada".to_owned());
        assert!(may(&PeerKind::Anonymous, &Method::POST, "/v1/join").is_ok());
        assert!(may(&PeerKind::Anonymous, &Method::POST, "/v1/servers/join").is_ok());
        assert!(may(&PeerKind::Anonymous, &Method::GET, "/v1/join").is_err());
        assert!(may(&PeerKind::Anonymous, &Method::GET, "/v1/nodes").is_err());
        assert!(may(&PeerKind::Anonymous, &Method::POST, "/v1/certificates/renew").is_err());
        assert!(may(&node, &Method::POST, "/v1/certificates/renew").is_ok());
        assert!(may(&node, &Method::POST, "/v1/servers/join").is_err());
        assert!(may(&node, &Method::POST, "/v1/tokens").is_err());
        assert!(may(&user, &Method::POST, "/v1/tokens").is_ok());
    }
}
