//! Asks the node's own resolvers for names that are not of the cluster.
//!
//! - The answer is passed on as it came, with the asker's identifier: what we do not understand is not lost.
//! - An answer counts only if it comes from the resolver that was asked, with the random identifier and the question it was asked.
//! - Every question ends: each resolver has two seconds, and so many questions are under way at once.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    serialize::binary::BinEncodable,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::answer::{Transport, encode, failure, limit, no_such_name};

/// For one resolver to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the list of resolvers is used before the file is looked at again.
const KEPT: Duration = Duration::from_secs(5);
/// Questions under way at once.
const QUESTIONS: usize = 512;
const DNS_PORT: u16 = 53;

/// Where upstream resolvers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// The `nameserver` lines of this file, read again when they are older than five seconds.
    File(PathBuf),
    /// These.
    Fixed(Vec<SocketAddr>),
}

pub(super) struct Forwarder {
    upstreams: Upstreams,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    /// Which one answered last: it is asked first.
    preferred: Mutex<Option<SocketAddr>>,
    permits: Semaphore,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams) -> Self {
        let (read, preferred) = (Mutex::default(), Mutex::default());
        Self { upstreams, read, preferred, permits: Semaphore::new(QUESTIONS) }
    }

    /// The reply to send for a question. `own` are our own addresses, which are never asked.
    pub(super) async fn resolve(
        &self,
        request: &Message,
        transport: Transport,
        own: &[IpAddr],
    ) -> Option<Vec<u8>> {
        let Ok(_permit) = self.permits.try_acquire() else {
            return encode(&failure(request, ResponseCode::ServFail), transport, request);
        };
        let resolvers = self.resolvers(own);
        if resolvers.is_empty() {
            return encode(&no_such_name(request), transport, request);
        }
        let mut last = None;
        for resolver in resolvers {
            match ask(resolver, request, transport).await {
                Ok(reply) if reply.settles() => {
                    *self.preferred.lock() = Some(resolver);
                    return reply.for_asker(request, transport);
                }
                Ok(reply) => last = Some(reply),
                Err(error) => tracing::debug!(%resolver, %error, "resolver did not answer"),
            }
        }
        match last {
            Some(reply) => reply.for_asker(request, transport),
            None => encode(&failure(request, ResponseCode::ServFail), transport, request),
        }
    }

    /// The resolvers in the order in which to ask them.
    fn resolvers(&self, own: &[IpAddr]) -> Vec<SocketAddr> {
        let mut resolvers = self.configured();
        resolvers.retain(|resolver| !(own.contains(&resolver.ip()) && resolver.port() == DNS_PORT));
        if let Some(preferred) = *self.preferred.lock() {
            // Stable: the others keep the order they were configured in.
            resolvers.sort_by_key(|resolver| *resolver != preferred);
        }
        resolvers
    }

    fn configured(&self) -> Vec<SocketAddr> {
        let path = match &self.upstreams {
            Upstreams::Fixed(resolvers) => return resolvers.clone(),
            Upstreams::File(path) => path,
        };
        let mut read = self.read.lock();
        if let Some((at, resolvers)) = &*read
            && at.elapsed() < KEPT
        {
            return resolvers.clone();
        }
        // A small local file: shorter than handing it to another thread. Missing is the same as empty.
        let resolvers = nameservers(&std::fs::read_to_string(path).unwrap_or_default());
        *read = Some((Instant::now(), resolvers.clone()));
        resolvers
    }
}

/// The resolvers that the text of a `resolv.conf` names.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // An IPv6 link-local address may carry a zone, which only the C library understands.
        address.parse::<IpAddr>().ok()
    };
    text.lines().filter_map(address).map(|ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

/// A resolver's answer, and what of it we have read.
struct Reply {
    bytes: Vec<u8>,
    message: Message,
}

impl Reply {
    /// Whether another resolver cannot be expected to know better.
    fn settles(&self) -> bool {
        !matches!(
            self.message.metadata.response_code,
            ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
        )
    }

    fn for_asker(mut self, request: &Message, transport: Transport) -> Option<Vec<u8>> {
        if transport == Transport::Udp && self.bytes.len() > limit(request).max(announced(request)) {
            self.message.metadata.id = request.metadata.id;
            return encode(&self.message, transport, request);
        }
        self.bytes.get_mut(..2)?.copy_from_slice(&request.metadata.id.to_be_bytes());
        Some(self.bytes)
    }
}

/// What the asker said it takes: an upstream that stays within it needs no cutting.
fn announced(request: &Message) -> usize {
    request.edns.as_ref().map_or(0, |edns| edns.max_payload().into())
}

/// Asks one resolver, the way we were asked: who asked by UDP is told when an answer was cut, and asks again by TCP.
async fn ask(resolver: SocketAddr, request: &Message, transport: Transport) -> std::io::Result<Reply> {
    let mut question = request.clone();
    question.metadata.id = rand::random();
    let bytes = question.to_bytes().map_err(std::io::Error::other)?;
    let exchange = async {
        match transport {
            Transport::Udp => by_udp(resolver, &bytes, &question).await,
            Transport::Tcp => match by_tcp(resolver, &bytes, &question).await {
                // A resolver need not speak TCP; what it says by UDP is better than nothing.
                Err(_) => by_udp(resolver, &bytes, &question).await,
                reply => reply,
            },
        }
    };
    timeout(ANSWER, exchange).await?
}

async fn by_udp(resolver: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Reply> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    // Connected: answers of others do not arrive, and a refusal is an error at once.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is a forgery or late; the right one may still come.
        if let Some(reply) = accepted(&buffer[..length], question) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(resolver: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    accepted(&buffer, question).ok_or_else(|| std::io::Error::other("an answer to another question"))
}

fn accepted(bytes: &[u8], question: &Message) -> Option<Reply> {
    let message = Message::from_vec(bytes).ok()?;
    let ours = message.metadata.message_type == MessageType::Response
        && message.metadata.id == question.metadata.id
        && message.queries == question.queries;
    ours.then(|| Reply { bytes: bytes.to_vec(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 10.0.0.1\n nameserver\t::1 # local\nnameserver nonsense\nnameservers 1.1.1.1\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:53", "[::1]:53"]);
    }
}
