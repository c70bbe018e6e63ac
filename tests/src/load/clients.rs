//! One client of each kind, until it is told to stop.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, future::join_all};
use hickory_proto::{
    op,
    rr::{Name, RData, RecordType},
};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use super::{Figures, Kind, Plan, Watch};

/// How long an answer may take that is asked for at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a download lasts, and its size.
const DOWNLOAD: (Duration, usize) = (Duration::from_secs(20), 2_000_000);
/// How long to wait before a connection that was refused is tried again, which is a loss each time.
const REFUSED: Duration = Duration::from_millis(50);

/// A client, before it begins.
pub(super) struct Client {
    kind: Kind,
    target: SocketAddr,
    resolve: Option<String>,
    host: String,
    pause: Duration,
    may_fail: bool,
    watch: Arc<Watch>,
    started: Instant,
    number: usize,
    figures: Figures,
    /// The task that answered last.
    last: Option<String>,
}

/// Why a request is lost, in words.
type Lost = String;

impl Client {
    pub(super) fn new(
        kind: Kind,
        target: SocketAddr,
        plan: &Plan,
        watch: Arc<Watch>,
        started: Instant,
        number: usize,
    ) -> Self {
        let Plan { resolve, host, pause, may_fail, .. } = plan;
        let (resolve, figures, pause, may_fail) = (resolve.clone(), Figures::default(), *pause, *may_fail);
        let of_its_own = kind == Kind::Sticky && resolve.is_none();
        let host = if of_its_own { format!("sticky.{host}") } else { host.clone() };
        Self { kind, target, resolve, host, pause, may_fail, watch, started, number, figures, last: None }
    }

    pub(super) async fn run(mut self) -> Figures {
        while !self.watch.is_over() {
            let ended = match self.kind {
                Kind::KeepAlive | Kind::Fresh | Kind::Post | Kind::Sticky | Kind::Download => {
                    self.http1().await
                }
                Kind::Http2 => self.http2().await,
                Kind::WebSocket => self.websocket().await,
            };
            if let Err(lost) = ended {
                self.lost(&lost);
                tokio::time::sleep(REFUSED).await;
            }
        }
        self.figures
    }

    fn lost(&mut self, how: &str) {
        self.figures.lost += 1;
        self.watch.lost.fetch_add(1, Ordering::Relaxed);
        if self.figures.how.len() < 20 {
            self.figures.how.push((self.started.elapsed(), format!("{} {}: {how}", self.kind, self.number)));
        }
    }

    fn asked(&mut self, count: u64) {
        self.figures.asked += count;
        self.watch.asked.fetch_add(count, Ordering::Relaxed);
    }

    async fn connect(&mut self) -> Result<TcpStream, Lost> {
        self.figures.connections += 1;
        let target = match self.resolve.clone() {
            None => self.target,
            Some(name) => match timeout(PATIENCE, resolved(&name, self.number)).await {
                Ok(Ok(address)) => SocketAddr::from((address, self.target.port())),
                Ok(Err(lost)) => {
                    self.asked(1);
                    return Err(lost);
                }
                Err(_) => {
                    self.asked(1);
                    return Err(format!("{name} is not answered in time"));
                }
            },
        };
        let stream = match timeout(PATIENCE, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.asked(1);
                return Err(format!("no connection: {error}"));
            }
            Err(_) => {
                self.asked(1);
                return Err("no connection in time".to_owned());
            }
        };
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(stream)
    }

    /// Requests on one connection until that ends, or one is lost.
    async fn http1(&mut self) -> Result<(), Lost> {
        let stream = self.connect().await?;
        let (mut sender, connection) = match http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await {
            Ok(both) => both,
            Err(error) => return Err(format!("no HTTP: {error}")),
        };
        let connection = tokio::task::spawn_local(connection);
        let mut cookie: Option<String> = None;
        let ended = loop {
            // An end that the server made while nothing was under way.
            if self.watch.is_over() || sender.ready().await.is_err() {
                break Ok(());
            }
            let request = self.request(cookie.as_deref());
            let since = Instant::now();
            let answer = match sender.try_send_request(request).await {
                Ok(answer) => answer,
                // Nothing of it was sent: the connection had ended.
                Err(error) if error.message().is_some() => break Ok(()),
                Err(error) => {
                    self.asked(1);
                    break Err(chain(&error.into_error()));
                }
            };
            self.asked(1);
            let set = answer.headers().get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
            if let Some(set) = set {
                cookie = set.split(';').next().map(str::to_owned);
            }
            if let Err(lost) = self.check(answer, since).await {
                break Err(lost);
            }
            if self.kind == Kind::Fresh {
                break Ok(());
            }
            tokio::time::sleep(self.pause).await;
        };
        connection.abort();
        ended
    }

    fn request(&self, cookie: Option<&str>) -> Request<Full<Bytes>> {
        let (method, path, body) = match self.kind {
            Kind::Post => ("POST", "/echo".to_owned(), Bytes::from(vec![b'x'; 2048])),
            Kind::Download => {
                ("GET", format!("/drip/{}/{}", DOWNLOAD.1, DOWNLOAD.0.as_millis()), Bytes::new())
            }
            _ => ("GET", "/".to_owned(), Bytes::new()),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.host);
        if let Some(cookie) = cookie.filter(|_| self.kind == Kind::Sticky) {
            request = request.header(header::COOKIE, cookie);
        }
        if self.kind == Kind::Fresh {
            request = request.header(header::CONNECTION, "close");
        }
        request.body(Full::new(body)).expect("the parts are valid")
    }

    async fn check(&mut self, answer: Response<Incoming>, since: Instant) -> Result<(), Lost> {
        let patience = PATIENCE + if self.kind == Kind::Download { DOWNLOAD.0 } else { Duration::ZERO };
        let status = answer.status();
        let body = match timeout(patience, answer.into_body().collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(format!("{status}, and the body broke off: {}", chain(&error))),
            Err(_) => return Err(format!("{status}, and the body did not end in time")),
        };
        self.figures.slowest = self.figures.slowest.max(since.elapsed());
        if self.may_fail && status == StatusCode::INTERNAL_SERVER_ERROR {
            self.figures.failed += 1;
            return Ok(());
        }
        let text = String::from_utf8_lossy(&body);
        let right = match self.kind {
            Kind::Post => body.len() == 2048 && body.iter().all(|byte| *byte == b'x'),
            Kind::Download => body.len() == DOWNLOAD.1,
            _ => text.starts_with("hostname="),
        };
        if status != 200 || !right {
            return Err(format!("{status} {:.120}", text.trim()));
        }
        if let Some((host, name)) =
            text.trim().strip_prefix("hostname=").and_then(|it| it.split_once(" name="))
        {
            *self.figures.names.entry(name.to_owned()).or_default() += 1;
            if self.last.as_deref() != Some(host) {
                self.figures.moved += u64::from(self.last.is_some());
                self.last = Some(host.to_owned());
            }
        }
        Ok(())
    }

    /// Four requests at a time on one connection until that ends, or one is lost.
    async fn http2(&mut self) -> Result<(), Lost> {
        let stream = self.connect().await?;
        let handshake = http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) =
            handshake.await.map_err(|error| format!("no HTTP/2: {}", chain(&error)))?;
        let connection = tokio::task::spawn_local(connection);
        let ended = loop {
            let mut ready = sender.clone();
            if self.watch.is_over() || ready.ready().await.is_err() {
                break Ok(());
            }
            let since = Instant::now();
            let four = (0..4).map(|_| {
                let mut sender = sender.clone();
                let request = Request::builder().uri(format!("http://{}/", self.host));
                let request = request.body(Full::new(Bytes::new())).expect("the parts are valid");
                async move { sender.try_send_request(request).await }
            });
            let mut lost = None;
            let mut unsent = 0;
            for answer in join_all(four).await {
                let checked = match answer {
                    Ok(answer) => self.check(answer, since).await,
                    Err(error) if error.message().is_some() => {
                        unsent += 1;
                        Ok(())
                    }
                    Err(error) => match error.into_error() {
                        error if is_left_out(&error) => {
                            unsent += 1;
                            Ok(())
                        }
                        error => Err(chain(&error)),
                    },
                };
                if let Err(error) = checked
                    && let Some(earlier) = lost.replace(error)
                {
                    self.lost(&earlier);
                }
            }
            self.asked(4 - unsent);
            if let Some(lost) = lost {
                break Err(lost);
            }
            if unsent > 0 {
                break Ok(());
            }
            tokio::time::sleep(self.pause).await;
        };
        connection.abort();
        ended
    }

    /// Messages on one connection until that ends, or one is lost.
    async fn websocket(&mut self) -> Result<(), Lost> {
        let stream = self.connect().await?;
        let url = format!("ws://{}/ws", self.host);
        let mut socket = match within(tokio_tungstenite::client_async(url, stream)).await {
            Ok((socket, _)) => socket,
            Err(lost) => {
                self.asked(1);
                return Err(lost);
            }
        };
        let mut count = 0_u64;
        while !self.watch.is_over() {
            count += 1;
            let text = format!("message {count} of client {}", self.number);
            let since = Instant::now();
            if within(socket.send(Message::text(&text))).await.is_err() {
                // The other side had ended before: not sent. How it ended is read below.
                return Self::read_close(&mut socket).await;
            }
            self.asked(1);
            match timeout(PATIENCE, socket.next()).await {
                Ok(Some(Ok(Message::Text(echo)))) if echo.as_str() == text => {}
                Ok(Some(Ok(Message::Close(_)))) => {
                    self.figures.unanswered_at_close += 1;
                    // Answers the close frame.
                    let _ = socket.close(None).await;
                    return Ok(());
                }
                Ok(Some(Ok(other))) => return Err(format!("{other:?} instead of the echo")),
                Ok(Some(Err(error))) => return Err(chain(&error)),
                Ok(None) => return Err("ended without a close frame".to_owned()),
                Err(_) => return Err("no echo in time".to_owned()),
            }
            self.figures.slowest = self.figures.slowest.max(since.elapsed());
            tokio::time::sleep(self.pause).await;
        }
        let _ = timeout(PATIENCE, socket.close(None)).await;
        Ok(())
    }

    /// Reads what is left of a socket to which nothing can be sent any more. Nothing was unanswered on it.
    async fn read_close<S>(socket: &mut tokio_tungstenite::WebSocketStream<S>) -> Result<(), Lost>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        while let Ok(Some(Ok(_))) = timeout(PATIENCE, socket.next()).await {}
        Ok(())
    }
}

/// The first address of a name, as the resolver of a container's engine says it now.
async fn resolved(name: &str, number: usize) -> Result<Ipv4Addr, Lost> {
    let ask = async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let id = u16::try_from(number % 60_000).unwrap_or_default();
        let mut question = op::Message::new(id, op::MessageType::Query, op::OpCode::Query);
        question.metadata.recursion_desired = true;
        question.add_query(op::Query::query(Name::from_ascii(name)?, RecordType::A));
        socket.send_to(&question.to_vec()?, (Ipv4Addr::new(127, 0, 0, 11), 53)).await?;
        let mut buffer = vec![0; 4096];
        let size = socket.recv(&mut buffer).await?;
        let answer = op::Message::from_vec(&buffer[..size])?;
        let address = answer.answers.iter().find_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
        address.ok_or_else(|| anyhow::anyhow!("{name} has no address: {}", answer.metadata.response_code))
    };
    ask.await.map_err(|error: anyhow::Error| format!("{name} is not resolved: {error:#}"))
}

async fn within<T, E: std::error::Error>(what: impl Future<Output = Result<T, E>>) -> Result<T, Lost> {
    match timeout(PATIENCE, what).await {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(_) => Err("not in time".to_owned()),
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether an HTTP/2 connection was ended in order, and the server says that it has not looked at this request (RFC 9113, 6.8: those of
/// streams above the last that a GOAWAY names), or it was not even sent. Other requests on it are answered.
fn is_left_out(error: &hyper::Error) -> bool {
    let error = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    })
}
