//! What BuildKit may ask of whoever has it build: secrets, and logins of registries.
//!
//! The engine's `POST /session` turns a connection round: from then on the engine asks, by gRPC over HTTP/2, and this answers for as long
//! as the build takes. Of the services that there are, three methods are offered; the messages are so small that they are read by hand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{Stream, future::BoxFuture, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};
use wharf_api::transport::{Timing, reverse};

use super::trace::{Value, fields};
use crate::runtime::{Credentials, Result, RuntimeError};

const SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
const LOGIN: &str = "/moby.filesync.v1.Auth/Credentials";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// For the engine to turn the connection round.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest head of its answer, and the longest question.
const LONGEST: usize = 16 << 10;
/// What gRPC calls these.
const OK: u8 = 0;
const NOT_FOUND: u8 = 5;
const UNIMPLEMENTED: u8 = 12;
/// Docker Hub, as logins are kept for it and as BuildKit asks for it.
const HUB: (&str, &str) = ("https://index.docker.io/v1/", "registry-1.docker.io");

/// What is answered.
pub(super) struct Answers {
    secrets: BTreeMap<String, Vec<u8>>,
    logins: Vec<Credentials>,
}

impl Answers {
    /// Secrets by id, in base64, and logins. `None` if BuildKit needs to ask nothing.
    pub(super) fn new(secrets: &BTreeMap<String, String>, logins: Vec<Credentials>) -> Option<Self> {
        let decoded = |(id, text): (&String, &String)| Some((id.clone(), STANDARD.decode(text).ok()?));
        let answers = Self { secrets: secrets.iter().filter_map(decoded).collect(), logins };
        (!answers.secrets.is_empty() || !answers.logins.is_empty()).then_some(answers)
    }

    /// The answer to a question: a status and a message.
    fn answer(&self, method: &str, question: &[u8]) -> (u8, Vec<u8>) {
        let text = || {
            fields(question).find_map(|(field, value)| match (field, value) {
                (1, Value::Bytes(text)) => std::str::from_utf8(text).ok(),
                _ => None,
            })
        };
        match method {
            // Serving.
            HEALTH => (OK, vec![1 << 3, 1]),
            SECRET => match self.secrets.get(text().unwrap_or_default()) {
                Some(secret) => (OK, bytes_field(1, secret)),
                None => (NOT_FOUND, Vec::new()),
            },
            LOGIN => {
                let host = text().unwrap_or_default();
                let is_of =
                    |login: &&Credentials| login.server == host || (login.server == HUB.0 && host == HUB.1);
                match self.logins.iter().find(is_of) {
                    None => (OK, Vec::new()),
                    // A token instead of a password has no user.
                    Some(Credentials { identity_token: Some(token), .. }) => {
                        (OK, bytes_field(2, token.as_bytes()))
                    }
                    Some(login) => {
                        let both = [
                            bytes_field(1, login.username.as_bytes()),
                            bytes_field(2, login.password.as_bytes()),
                        ];
                        (OK, both.concat())
                    }
                }
            }
            _ => (UNIMPLEMENTED, Vec::new()),
        }
    }
}

/// Begins a session: the future answers the engine for as long as it is polled.
pub(super) async fn begin(socket: &Path, id: &str, answers: Answers) -> Result<BoxFuture<'static, ()>> {
    let failed = |error: &dyn std::fmt::Display| {
        RuntimeError::unreachable(format!("cannot begin a session with the engine's builder: {error}"))
    };
    let turning = async {
        let mut stream = UnixStream::connect(socket).await.map_err(|error| failed(&error))?;
        let mut request = format!(
            "POST /session HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\
             X-Docker-Expose-Session-Uuid: {id}\r\nX-Docker-Expose-Session-Name: wharf\r\n\
             X-Docker-Expose-Session-Sharedkey: \r\n"
        );
        for method in [SECRET, LOGIN, HEALTH] {
            request.push_str(&format!("X-Docker-Expose-Session-Grpc-Method: {method}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| failed(&error))?;
        let mut head = Vec::new();
        // Byte by byte: what comes after the head is HTTP/2's already.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > LONGEST {
                return Err(failed(&"its answer has no end"));
            }
            head.push(stream.read_u8().await.map_err(|error| failed(&error))?);
        }
        let first = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
        if !first.contains(" 101 ") {
            return Err(RuntimeError::fatal(format!("the engine's builder takes no session: {first}")));
        }
        Ok(stream)
    };
    let stream = timeout(PATIENCE, turning).await.map_err(|_elapsed| failed(&"it does not answer"))??;
    let answers = Arc::new(answers);
    Ok(Box::pin(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let answers = Arc::clone(&answers);
            async move { Ok::<_, Infallible>(answer(&answers, request).await) }
        });
        let timing = Timing { keepalive_interval: Duration::from_secs(60), ..Timing::default() };
        // When it ends, the build does, and says why.
        let _ = reverse::serve(stream, service, &timing).await;
    }))
}

type Answer = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(answers: &Answers, request: Request<Incoming>) -> Response<Answer> {
    let method = request.uri().path().to_owned();
    let question = Limited::new(request.into_body(), LONGEST).collect().await.map(|body| body.to_bytes());
    // A byte that says whether it is compressed, four of length, the message.
    let question = question.unwrap_or_default();
    let (status, message) = answers.answer(&method, question.get(5..).unwrap_or_default());
    let mut frames = Vec::new();
    if status == OK {
        let mut framed = BytesMut::from(&[0_u8][..]);
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
        framed.extend_from_slice(&message);
        frames.push(Ok(Frame::data(framed.freeze())));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(status)));
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A field with bytes, as protocol buffers have it.
fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    loop {
        let byte = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        out.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(content);
    out
}

/// What a builder says, while its questions are answered.
pub(super) struct Answered<T> {
    pub(super) said: BoxStream<'static, T>,
    pub(super) session: Option<BoxFuture<'static, ()>>,
}
impl<T> Stream for Answered<T> {
    type Item = T;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(session) = &mut self.session
            && session.as_mut().poll(context).is_ready()
        {
            self.session = None;
        }
        self.said.as_mut().poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_logins_are_answered_and_nothing_else() {
        let secrets = [("token".to_owned(), STANDARD.encode("s".repeat(200)))].into();
        let login = |server: &str, token: Option<&str>| Credentials {
            username: "ada".into(),
            password: "pw".into(),
            identity_token: token.map(str::to_owned),
            server: server.into(),
        };
        let logins = vec![login(HUB.0, None), login("r.example", Some("t"))];
        let answers = Answers::new(&secrets, logins).unwrap();
        let (status, message) = answers.answer(SECRET, &bytes_field(1, b"token"));
        let (_, Value::Bytes(secret)) = fields(&message).next().unwrap() else { panic!("bytes") };
        assert_eq!((status, secret), (OK, "s".repeat(200).as_bytes()));
        assert_eq!(answers.answer(SECRET, &bytes_field(1, b"other")).0, NOT_FOUND);
        assert_eq!(answers.answer(LOGIN, &bytes_field(1, HUB.1.as_bytes())).1, b"\x0a\x03ada\x12\x02pw");
        assert_eq!(answers.answer(LOGIN, &bytes_field(1, b"r.example")).1, b"\x12\x01t");
        assert_eq!(answers.answer(LOGIN, &bytes_field(1, b"elsewhere")), (OK, Vec::new()));
        assert_eq!(answers.answer(HEALTH, b"").0, OK);
        assert_eq!(answers.answer("/other", b"").0, UNIMPLEMENTED);
        assert!(Answers::new(&BTreeMap::new(), Vec::new()).is_none());
    }
}
