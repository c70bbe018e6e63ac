//! How the parts of a cluster speak: one TCP port, TLS 1.3 with certificates of the cluster's own authority, HTTP/2 over it.
//!
//! - A peer is what its certificate says ([`Peer`]); without one it is anonymous, and all it may do is join.
//! - Which protocol a connection speaks is settled in the TLS handshake: `h2` and `http/1.1` are the API; over [`ALPN_NODE`] the roles
//!   of HTTP/2 are reversed, and the node that dialled is the one that answers requests ([`reverse`]).
//! - No stream can starve another: a connection's window holds the full windows of all the streams it may have.
//! - A peer that dies in silence is noticed within [`Timing::keepalive_interval`] + [`Timing::keepalive_timeout`].
//! - Nothing here reads a clock of its own but through rustls' `TimeProvider`, which may be handed in.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};

pub mod checksum;
pub mod client;
pub mod diagnose;
pub mod error;
pub mod frame;
pub mod identity;
pub mod lines;
pub mod node;
pub mod prompt;
pub mod reverse;
pub mod signed;
pub mod tls;
pub mod token;
pub mod wire;

pub use checksum::{Checksum, Sent};
pub use client::{Client, Remote, ServerAddress};
pub use error::{CallError, Clocks, DialError};
pub use frame::{Decoder, Frame, FrameError, FrameReader, FrameSender};
pub use identity::{Identity, InvalidIdentity, Peer, PeerKind, Trust};
pub use lines::{LineReader, json_lines};
pub use token::{InvalidToken, JoinToken};

/// The one port of a server.
pub const DEFAULT_PORT: u16 = 7420;
/// The protocol of a node's session: HTTP/2 with its roles reversed.
pub const ALPN_NODE: &[u8] = b"wharf-agent/1";
/// The API over HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// The API over HTTP/1.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// What goes wrong with a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A request's body, of whatever origin.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body without content.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body with this content.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

/// How long the transport waits for what. Tests use shorter ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For a TCP connection.
    pub connect: Duration,
    /// For a TLS handshake, and again for the first byte after it.
    pub handshake: Duration,
    /// How long a connection may be silent before it is probed.
    pub keepalive_interval: Duration,
    /// How long the answer to a probe may take.
    pub keepalive_timeout: Duration,
    /// How long a stream may be silent before its sender says that it is still there.
    pub stream_keepalive: Duration,
    /// For the head of an answer to a request that does not wait for anything.
    pub answer: Duration,
}

impl Timing {
    /// How long a stream may be silent before its reader gives it up: four times what its sender promises.
    pub fn stream_silence(&self) -> Duration {
        self.stream_keepalive * 4
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            // What a silent peer costs: a node that was cut off asks again within these and a second, and nothing stale is answered
            // for longer. A machine that stands still for so long is as good as away.
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(4),
            stream_keepalive: Duration::from_secs(15),
            answer: Duration::from_secs(30),
        }
    }
}
