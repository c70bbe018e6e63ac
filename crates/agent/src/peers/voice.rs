//! Speaks with other nodes: datagrams, signed with the key of the node's certificate.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use wharf_api::transport::{
    InvalidIdentity, Trust,
    signed::{Disbelief, Signed, Signer, Verifier},
};
use wharf_model::{NodeId, Timestamp};
use wharf_process::errors::chain;

use super::{
    alive::{Alive, CONTEXT, FORM},
    hearsay::Told,
};
use crate::session::Home;

/// Of the socket, for what was not heard yet, in bytes.
const ROOM: usize = 4 << 20;
/// The longest message.
const LONGEST: usize = 2048;
/// After an error that may last.
const PAUSE: Duration = Duration::from_millis(50);
/// The certificate is read again after so long: it is renewed now and then.
const FRESH: Duration = Duration::from_mins(1);

/// A node's voice and ears.
#[derive(Debug)]
pub struct Voice {
    socket: UdpSocket,
    port: u16,
    home: Home,
    signer: Option<(Signer, Duration)>,
    verifier: Verifier,
}

/// Something that a node seems to have said.
#[derive(Debug)]
pub(crate) struct Heard {
    message: Vec<u8>,
    /// Where it came from.
    pub(crate) from: IpAddr,
    /// What it says.
    pub(crate) said: Alive,
}

impl Voice {
    /// Listens at a UDP port of every address, usually [`wharf_model::WORD_PORT`], and speaks to that of others. The node's key is in its `home`.
    ///
    /// # Errors
    /// If the port is taken, or the authority's certificate cannot be read.
    pub fn open(home: Home, trust: &Trust, port: u16) -> io::Result<Self> {
        let wrong = |error: InvalidIdentity| io::Error::new(io::ErrorKind::InvalidData, error);
        let socket = listen((Ipv6Addr::UNSPECIFIED, port).into())
            .or_else(|_| listen((Ipv4Addr::UNSPECIFIED, port).into()))?;
        let port = socket.local_addr()?.port();
        Ok(Self { socket, port, home, signer: None, verifier: Verifier::new(trust).map_err(wrong)? })
    }

    /// Says it to all of them. What does not get there is lost. Waits only for the machine to send.
    pub(crate) async fn say(&mut self, told: &Told, moment: Duration) {
        if self.signer.as_ref().is_none_or(|(_, read)| moment.saturating_sub(*read) >= FRESH) {
            self.read_key(moment);
        }
        let Some((signer, _)) = &self.signer else { return };
        let is_v4 = self.socket.local_addr().is_ok_and(|address| address.is_ipv4());
        for part in &told.parts {
            let signed = match signer.sign(CONTEXT, &part.write()) {
                Ok(signed) => signed,
                Err(error) => return tracing::warn!(%error, "other nodes are not told what is alive here"),
            };
            for to in &told.to {
                let to = match to {
                    IpAddr::V4(to) if !is_v4 => to.to_ipv6_mapped().into(),
                    to => *to,
                };
                if let Err(error) = self.socket.send_to(&signed, (to, self.port)).await {
                    tracing::trace!(%error, %to, "not told");
                }
            }
        }
    }

    fn read_key(&mut self, moment: Duration) {
        let membership = self.home.read().map_err(|error| chain(&error));
        let read = membership
            .and_then(|membership| Signer::new(&membership.identity).map_err(|error| chain(&error)));
        match read {
            Ok(signer) => self.signer = Some((signer, moment)),
            // The one before may be good still.
            Err(error) => tracing::warn!(error, "this node's key cannot be read"),
        }
    }

    /// The next thing that somebody says, whoever it may be. May be dropped.
    pub(crate) async fn hear(&self) -> Heard {
        let mut buffer = [0; LONGEST];
        loop {
            match self.socket.recv_from(&mut buffer).await {
                // Whether it can be reached: more than was asked, so that no two ask each other for ever, and not more than anybody may send.
                Ok((0, from)) => drop(self.socket.try_send_to(&[FORM], from)),
                Ok((length, from)) => {
                    let message = &buffer[..length];
                    let said = Signed::read(message).ok().and_then(|signed| Alive::read(signed.content));
                    if let Some(said) = said {
                        return Heard { message: message.to_vec(), from: from.ip().to_canonical(), said };
                    }
                }
                Err(error) => {
                    // Also what the kernel was told of something that was sent.
                    tracing::debug!(%error, "nothing heard");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Who has really said it.
    pub(crate) fn believe(&mut self, heard: &Heard, now: Timestamp) -> Result<NodeId, Disbelief> {
        self.verifier.verify(CONTEXT, &Signed::read(&heard.message)?, now)
    }
}

fn listen(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A thousand nodes may have something to say at once.
    let _ = setsockopt(&socket, RcvBufForce, &ROOM);
    socket.bind(&at.into())?;
    UdpSocket::from_std(socket.into())
}
