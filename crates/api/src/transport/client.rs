//! The typed end of a connection: dials a server, or takes over a connection a node dialled, and asks.
//!
//! - A request whose connection broke says why it broke, also when the reason (a refused certificate) arrives after the handshake, as
//!   TLS 1.3 has it.
//! - A status other than success is an error that carries the server's [`Problem`].
//! - Every request has a deadline for the head of its answer; streams have one for silence, at their readers.

use std::{
    fmt, io,
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, client::conn::http2::SendRequest, rt::Executor};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, pki_types::ServerName, time_provider::TimeProvider};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    sync::watch,
    time::{Instant, interval, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wharf_model::Timestamp;

use super::{
    Body, BodyError, CallError, DEFAULT_PORT, DialError, Identity, InvalidIdentity, Peer, Timing, empty,
    error::tls_error,
    full,
    prompt::Prompt,
    reverse,
    tls::{self, Anchor, Protocol},
};
use crate::v1::{Code, Problem};

/// The longest answer that is read as a whole.
const MAX_ANSWER: usize = 64 << 20;
/// How long to wait for the reason why a connection broke, once a request has failed for it.
const REASON: Duration = Duration::from_secs(1);

/// Where a server answers: `host`, `host:port`, `[v6]:port` or a bare IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAddress {
    host: String,
    port: u16,
}
/// Text that is no server's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no server address: use HOST or HOST:PORT")]
pub struct InvalidAddress(String);

impl ServerAddress {
    /// The host's name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}
impl FromStr for ServerAddress {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress(text.to_owned());
        let text = text.trim();
        let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.to_owned(), port: DEFAULT_PORT });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?)
            }
            Some(_) | None => (text, DEFAULT_PORT),
        };
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bare {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| invalid())?.to_string(),
            None => host.to_owned(),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || (bare.is_none() && !host.chars().all(legal)) {
            return Err(invalid());
        }
        Ok(Self { host, port })
    }
}
impl TryFrom<String> for ServerAddress {
    type Error = InvalidAddress;
    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}
impl From<ServerAddress> for String {
    fn from(address: ServerAddress) -> Self {
        address.to_string()
    }
}
impl From<std::net::SocketAddr> for ServerAddress {
    fn from(address: std::net::SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Makes connections with one identity. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    config: Arc<ClientConfig>,
    me: Option<Peer>,
    time: Arc<dyn TimeProvider>,
    timing: Timing,
    again: Option<Duration>,
}

impl Dialer {
    /// Dials servers of the cluster of `anchor`, as `identity` or anonymously.
    ///
    /// # Errors
    /// If a certificate or key cannot be read.
    pub fn new(
        anchor: &Anchor,
        identity: Option<&Identity>,
        protocol: Protocol,
        timing: Timing,
        time: Arc<dyn TimeProvider>,
    ) -> Result<Self, InvalidIdentity> {
        let config = Arc::new(tls::client_config(anchor, identity, protocol, Arc::clone(&time))?);
        let me = identity.map(Identity::peer).transpose()?;
        Ok(Self { config, me, time, timing, again: None })
    }

    /// As long as nobody answers, tries another TCP connection after each `again`, beside those that it tried before. The kernel asks a silent
    /// machine a second time only after one second, and a third time two seconds later. `Timing::connect` bounds all of them together.
    #[must_use]
    pub fn insisting(self, again: Duration) -> Self {
        Self { again: Some(again), ..self }
    }

    /// Connects and shakes hands. A server that refuses our certificate may say so only when the stream is first read: the stream keeps it.
    ///
    /// # Errors
    /// If there is no server of the cluster there.
    pub async fn connect(&self, address: &ServerAddress) -> Result<Stream, DialError> {
        let tcp = self.connect_tcp(address).await?;
        let name = ServerName::try_from(address.host.clone())
            .unwrap_or_else(|_| ServerName::try_from("wharf").expect("this is a host name"));
        let shaking = TlsConnector::from(Arc::clone(&self.config)).connect(name, tcp);
        let after = self.timing.handshake;
        let shaken = timeout(after, shaking).await;
        let tls = shaken
            .map_err(|_| DialError::TimedOut { address: address.clone(), after })?
            .map_err(|error| DialError::from_tls(address, error, self.me.as_ref(), self.now()))?;
        Ok(Stream { tls: Prompt::new(tls, after), fault: Fault::default() })
    }

    /// Connects to the first of these addresses that works, to ask.
    ///
    /// # Errors
    /// What the first address said, if none works: it is the one that was meant most.
    pub async fn dial(&self, addresses: &[ServerAddress]) -> Result<Client, DialError> {
        let mut first = None;
        for address in addresses {
            match self.dial_one(address).await {
                Ok(client) => return Ok(client),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(DialError::NoAddress))
    }

    async fn dial_one(&self, address: &ServerAddress) -> Result<Client, DialError> {
        let stream = self.connect(address).await?;
        let fault = stream.fault.clone();
        let unreachable = |error: hyper::Error| DialError::Unreachable {
            address: address.clone(),
            source: io::Error::other(error),
        };
        let (mut remote, driver) =
            Remote::over(stream, address.to_string(), self.timing).await.map_err(unreachable)?;
        remote.dialled = Some(Arc::new(Dialled { by: self.clone(), to: address.clone(), fault }));
        // Owned by the handles: it ends when the last of them is dropped.
        TokioExecutor::new().execute(driver);
        Ok(remote)
    }

    /// Why a connection to `address` that was made and then broke did so, if it was TLS.
    pub fn explain(&self, address: &ServerAddress, fault: &Fault) -> Option<DialError> {
        let error = fault.0.get()?.clone();
        let source = io::Error::new(io::ErrorKind::InvalidData, error);
        Some(DialError::from_tls(address, source, self.me.as_ref(), self.now()))
    }

    async fn connect_tcp(&self, address: &ServerAddress) -> Result<TcpStream, DialError> {
        let after = self.timing.connect;
        let deadline = Instant::now() + after;
        let found = timeout_at(deadline, lookup_host((address.host.as_str(), address.port))).await;
        let late = || DialError::TimedOut { address: address.clone(), after };
        let found = found
            .map_err(|_| late())?
            .map_err(|source| DialError::NoSuchHost { address: address.clone(), source })?;
        let connected = match self.again {
            None => timeout_at(deadline, one_after_another(found)).await.unwrap_or(Err(None)),
            Some(again) => again_and_again(found.collect(), again, deadline).await,
        };
        let stream = connected.map_err(|error| match error {
            Some(error) => DialError::from_connect(address, error),
            None => late(),
        })?;
        tune(&stream, &self.timing);
        Ok(stream)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.time.current_time().map_or(0, |time| time.as_secs().saturating_mul(1000)))
    }
}

/// Connects to the first of these that lets it; else why the last did not.
async fn one_after_another(found: impl Iterator<Item = SocketAddr>) -> Result<TcpStream, Option<io::Error>> {
    let mut last = None;
    for socket in found {
        match TcpStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(Some(last.unwrap_or_else(|| io::ErrorKind::NotFound.into())))
}

/// Connects to whichever of these answers first. Tries the next of them after each `again`, whether or not those before it have failed, until one
/// answers, all that are there refuse, or the deadline; else why the last failed, if it did.
async fn again_and_again(
    mut found: Vec<SocketAddr>,
    again: Duration,
    deadline: Instant,
) -> Result<TcpStream, Option<io::Error>> {
    let (mut attempts, mut last) = (FuturesUnordered::new(), None);
    let mut turns = interval(again);
    for turn in 0_usize.. {
        // Cancel-safe: what is under way is kept.
        let ended = async {
            while let Some((socket, ended)) = attempts.next().await {
                match ended {
                    Ok(stream) => return Ok(stream),
                    Err(error) if is_silence(&error) => last = Some(error),
                    Err(error) => {
                        found.retain(|other| *other != socket);
                        if found.is_empty() {
                            return Err(Some(error));
                        }
                        last = Some(error);
                    }
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            ended = ended => return ended,
            _ = turns.tick() => {}
            () = sleep_until(deadline) => break,
        }
        match found.get(turn % found.len().max(1)) {
            Some(&socket) => attempts.push(async move { (socket, TcpStream::connect(socket).await) }),
            None => break,
        }
    }
    Err(last)
}

/// Whether nobody has answered, which may be otherwise in a moment.
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, TimedOut};
    matches!(error.kind(), HostUnreachable | NetworkDown | NetworkUnreachable | TimedOut)
}

/// Has the kernel send small writes at once and notice a dead peer as fast as HTTP/2 does. A kernel that cannot is no reason to stop.
pub fn tune(stream: &TcpStream, timing: &Timing) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(timing.keepalive_interval.max(Duration::from_secs(1)))
        .with_interval(timing.keepalive_timeout.max(Duration::from_secs(1)))
        .with_retries(2);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(timing.keepalive_interval + timing.keepalive_timeout));
}

/// What TLS said when a connection broke.
#[derive(Debug, Clone, Default)]
pub struct Fault(Arc<OnceLock<rustls::Error>>);

/// A connection to a server that remembers what TLS had against it, which HTTP/2 forgets.
#[derive(Debug)]
pub struct Stream {
    tls: Prompt<TlsStream<TcpStream>>,
    fault: Fault,
}
impl Stream {
    /// Where the reason will be if the connection breaks.
    pub fn fault(&self) -> Fault {
        self.fault.clone()
    }
    fn note<T>(&self, outcome: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = outcome
            && let Some(error) = tls_error(error)
        {
            let _ = self.fault.0.set(error.clone());
        }
    }
}
impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.tls).poll_read(context, buffer);
        self.note(&outcome);
        outcome
    }
}
impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.tls).poll_write(context, data);
        self.note(&outcome);
        outcome
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.tls).poll_write_vectored(context, data);
        self.note(&outcome);
        outcome
    }
    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}

struct Dialled {
    by: Dialer,
    to: ServerAddress,
    fault: Fault,
}

/// A server one has dialled.
pub type Client = Remote;

/// The other end of a connection, to be asked. Clones share the connection, which closes when the last is dropped and its requests
/// are done.
#[derive(Clone)]
pub struct Remote {
    send: SendRequest<Body>,
    name: Arc<str>,
    timing: Timing,
    ended: watch::Receiver<bool>,
    dialled: Option<Arc<Dialled>>,
}
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("name", &self.name)
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Remote {
    /// Asks over an established connection to `name`. The future drives the connection, and ends when it does, with the reason if it broke:
    /// somebody has to run it.
    ///
    /// # Errors
    /// If HTTP/2 cannot begin.
    pub async fn over<I>(
        io: I,
        name: String,
        timing: Timing,
    ) -> Result<(Self, impl Future<Output = Result<(), hyper::Error>> + Send + 'static + use<I>), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = reverse::asking(&timing).handshake::<_, Body>(TokioIo::new(io)).await?;
        let (end, ended) = watch::channel(false);
        let driver = async move {
            let outcome = connection.await;
            end.send_replace(true);
            outcome
        };
        Ok((Self { send, name: name.into(), timing, ended, dialled: None }, driver))
    }

    /// Who it is, for people.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// How long this connection waits for what.
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }
    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.send.is_closed() || *self.ended.borrow()
    }
    /// Returns when the connection is gone. Cancel-safe.
    pub async fn closed(&self) {
        // A driver that was dropped is an end as well.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Sends a request and waits `patience` for the head of the answer, whatever its status.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn send(
        &self,
        request: Request<Body>,
        patience: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        let mut send = self.send.clone();
        let answer = timeout(patience, async move {
            send.ready().await?;
            send.send_request(request).await
        });
        match answer.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.lost(error).await),
            Err(_) => Err(CallError::TimedOut { peer: self.name.to_string(), after: patience }),
        }
    }

    /// Sends a request, and makes an error of an answer that is no success. For streams: the body is read by the caller.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, CallError> {
        let request = request(method, path, body);
        let response = self.send(request, self.timing.answer).await?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Asks for a value.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let response = self.open(Method::GET, path, empty()).await?;
        self.read(response).await
    }

    /// Sends a value and reads the one that is answered; `()` for an answer without content.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, CallError> {
        self.call_within(method, path, value, self.timing.answer).await
    }

    /// As [`Remote::call`], for an answer that takes as long as `patience`.
    ///
    /// # Errors
    /// If there is no answer, or it is a refusal.
    pub async fn call_within<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        value: &impl Serialize,
        patience: Duration,
    ) -> Result<T, CallError> {
        let content = serde_json::to_vec(value).map_err(|source| CallError::Answer {
            peer: self.name.to_string(),
            status: StatusCode::BAD_REQUEST,
            source: source.into(),
        })?;
        let response = self.send(request(method, path, full(content)), patience).await?;
        if response.status().is_success() {
            self.read(response).await
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// Reads an answer as a value.
    ///
    /// # Errors
    /// If it cannot be read, or not in time.
    pub async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, CallError> {
        let status = response.status();
        let content = self.content(response).await?;
        let content = if content.is_empty() { &b"null"[..] } else { &content[..] };
        serde_json::from_slice(content).map_err(|source| self.unreadable(status, source.into()))
    }

    /// The refusal an answer is; one that is not ours is quoted.
    pub async fn refusal(&self, response: Response<Incoming>) -> CallError {
        let status = response.status();
        let content = match self.content(response).await {
            Ok(content) => content,
            Err(error) => return error,
        };
        let problem = serde_json::from_slice(&content).unwrap_or_else(|_| Problem {
            code: code_of(status),
            message: format!("{} answered {status}: {}", self.name, first_line(&content)),
            hint: None,
            holder: None,
        });
        CallError::Refused { status, problem: Box::new(problem) }
    }

    async fn content(&self, response: Response<Incoming>) -> Result<Bytes, CallError> {
        let (status, after) = (response.status(), self.timing.answer);
        let content = timeout(after, Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
        let content = content.map_err(|_| CallError::TimedOut { peer: self.name.to_string(), after })?;
        Ok(content.map_err(|source| self.unreadable(status, source))?.to_bytes())
    }

    fn unreadable(&self, status: StatusCode, source: BodyError) -> CallError {
        CallError::Answer { peer: self.name.to_string(), status, source }
    }

    /// Why a request failed: what TLS said, if it did, else what HTTP/2 says.
    async fn lost(&self, error: hyper::Error) -> CallError {
        let _ = timeout(REASON, self.closed()).await;
        let reason =
            self.dialled.as_ref().and_then(|dialled| dialled.by.explain(&dialled.to, &dialled.fault));
        match reason {
            Some(reason) => CallError::Dial(reason),
            None => CallError::Lost { peer: self.name.to_string(), source: error.into() },
        }
    }
}

/// A request with a JSON body, or none.
pub fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(format!("https://wharf{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .expect("paths of ours are legal")
}

fn code_of(status: StatusCode) -> Code {
    match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::CONFLICT => Code::Conflict,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            Code::Unavailable
        }
        status if status.is_client_error() => Code::Invalid,
        _ => Code::Internal,
    }
}

fn first_line(content: &[u8]) -> String {
    String::from_utf8_lossy(content).lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const AGAIN: Duration = Duration::from_millis(10);

    /// One whose queue is full: who connects is not answered until somebody accepts.
    fn full() -> (Socket, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        std::net::TcpStream::connect(address).unwrap();
        (listener, address)
    }

    /// Connections to this address that are not answered yet.
    fn unanswered(to: SocketAddr) -> usize {
        let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let to = format!("0100007F:{:04X} 02", to.port());
        sockets.lines().filter(|line| line.contains(&to)).count()
    }

    #[tokio::test]
    async fn who_insists_tries_beside_what_is_not_answered() {
        let (listener, address) = full();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener.into()).unwrap();
        let deadline = Instant::now() + SOON;
        let open = async {
            while unanswered(address) < 3 {
                assert!(Instant::now() < deadline);
                sleep_until(Instant::now() + AGAIN).await;
            }
            // The second is one of ours.
            listener.accept().await.unwrap();
            listener.accept().await.unwrap()
        };
        let (tried, _theirs) = tokio::join!(again_and_again(vec![address], AGAIN, deadline), open);
        tried.unwrap();
        assert_eq!(unanswered(address), 0, "the others are given up");
    }

    #[tokio::test]
    async fn who_insists_ends_when_all_refuse_or_it_is_time() {
        let gone = |listener: Socket| listener.local_addr().unwrap().as_socket().unwrap();
        let refusing = gone(full().0);
        let (_listener, silent) = full();
        let late = || Instant::now() + AGAIN * 10;
        let refused =
            again_and_again(vec![refusing], AGAIN, Instant::now() + SOON).await.unwrap_err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(
            again_and_again(vec![silent], AGAIN, late()).await.unwrap_err().is_none(),
            "nobody has said anything"
        );
        let said = again_and_again(vec![refusing, silent], AGAIN, late()).await.unwrap_err().unwrap();
        assert_eq!(said.kind(), io::ErrorKind::ConnectionRefused);
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let all = vec![silent, refusing, there.local_addr().unwrap()];
        let stream = again_and_again(all, AGAIN, Instant::now() + SOON).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), there.local_addr().unwrap());
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, host, port) in [
            ("n1", "n1", 7420),
            (" https://n1.example.com:7443/ ", "n1.example.com", 7443),
            ("10.0.0.1:80", "10.0.0.1", 80),
            ("fd00::1", "fd00::1", 7420),
            ("[fd00::1]:80", "fd00::1", 80),
            ("[fd00::1]", "fd00::1", 7420),
        ] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        for text in ["", ":80", "a b", "n1:0", "n1:99999", "[n1]:80", "n1/path"] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
