//! Whether the process of another server has ended, as its machine says.
//!
//! - A connection to it that was open broke, and at the same place nobody accepts any more: the machine is there, and the process is not.
//!   Silence says nothing — the machine may be cut off and go on — and neither does a place that never was open from here.
//! - It is a reason to hurry, not a proof: what a leader that was taken for dead still decides is refused by the store.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::net::{TcpStream, lookup_host};
use wharf_api::transport::{
    InvalidIdentity, ServerAddress, Timing, Trust,
    client::{Client, Dialer},
    tls::{self, Anchor, Protocol},
};
use wharf_model::ServerId;
use wharf_process::Clock;

use crate::{leader::Witness, state::State};

/// Between attempts to reach a server.
const RETRY: Duration = Duration::from_secs(1);
/// A process that ends closes its connections and its port one after the other: how often, and after which pause, it is asked which it is.
const KNOCKS: usize = 20;
const KNOCK: Duration = Duration::from_millis(50);

/// Watches the ports of other servers.
pub(crate) struct Ports {
    state: Arc<State>,
    dialer: Dialer,
    clock: Arc<dyn Clock>,
}

impl Ports {
    /// Knows where servers are from what they announce.
    ///
    /// # Errors
    /// If the authority's certificate cannot be read.
    pub(crate) fn new(
        state: Arc<State>,
        trust: &Trust,
        timing: Timing,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, InvalidIdentity> {
        let anchor = Anchor::Authority(trust.clone());
        let dialer = Dialer::new(&anchor, None, Protocol::Api, timing, tls::system_time())?;
        Ok(Self { state, dialer, clock })
    }

    /// Where a server and no other answers.
    fn addresses_of(&self, server: ServerId) -> Vec<ServerAddress> {
        let inner = self.state.read();
        let Some(record) = inner.servers.get(&server) else { return Vec::new() };
        let others = || inner.servers.values().filter(|other| other.id != server);
        let own = record
            .addresses
            .iter()
            .filter(|address| !others().any(|other| other.addresses.contains(address)));
        own.filter_map(|address| address.parse().ok()).collect()
    }

    /// The first of its places that is open.
    async fn reach(&self, server: ServerId) -> Option<(ServerAddress, Client)> {
        for address in self.addresses_of(server) {
            if let Ok(client) = self.dialer.dial(std::slice::from_ref(&address)).await {
                return Some((address, client));
            }
        }
        None
    }

    async fn is_shut(&self, address: &ServerAddress) -> bool {
        for _ in 0..KNOCKS {
            if is_refused(address).await {
                return true;
            }
            self.clock.sleep(KNOCK).await;
        }
        false
    }
}

impl Witness for Ports {
    fn ended(self: Arc<Self>, server: ServerId) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                if let Some((address, client)) = self.reach(server).await {
                    client.closed().await;
                    if self.is_shut(&address).await {
                        tracing::info!(%server, %address, "the server's process has ended");
                        return;
                    }
                }
                self.clock.sleep(RETRY).await;
            }
        })
    }
}

/// Whether the machine there says that nobody listens.
async fn is_refused(address: &ServerAddress) -> bool {
    let Ok(found) = lookup_host((address.host(), address.port())).await else { return false };
    let mut refused = false;
    for socket in found {
        match tokio::time::timeout(RETRY, TcpStream::connect(socket)).await {
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => refused = true,
            // It is open, or nothing is known of it.
            Ok(Ok(_) | Err(_)) | Err(_) => return false,
        }
    }
    refused
}
