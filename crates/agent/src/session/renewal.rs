//! Gets a new certificate before the old one expires.

use std::{sync::Arc, time::Duration};

use http::Method;
use tokio_util::sync::CancellationToken;
use wharf_api::transport::{
    CallError, Identity, InvalidIdentity, Peer, ServerAddress, Trust,
    client::Dialer,
    error::Rough,
    tls::{Anchor, Protocol},
    wire::{self, RenewRequest, RenewResponse},
};
use wharf_model::Timestamp;
use wharf_process::{Backoff, errors::chain};

use super::{HomeError, Membership, Shared, join::check_identity, new_key, tls_time};

/// The longest sleep: the wall clock may be set meanwhile.
const NAP: Duration = Duration::from_secs(60);
/// The shortest: certificates count whole seconds.
const BLINK: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("no server renewed it")]
    Call(#[from] CallError),
    #[error("the certificate that came cannot be used")]
    Identity(#[from] InvalidIdentity),
    #[error("no key can be made")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// Renews the certificate after two thirds of its life, again and again, until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    // Dropped anywhere: the membership is replaced in one step, on the disk first.
    stop.run_until_cancelled(keep(&shared)).await;
}

async fn keep(shared: &Shared) {
    let mut backoff = Backoff::new(shared.timing.connect.min(Duration::from_secs(1)), NAP);
    loop {
        wait_until_due(shared).await;
        let current = Arc::clone(&shared.membership.borrow());
        match renew(shared, &current).await {
            Ok(peer) => {
                backoff.reset();
                tracing::info!(serial = peer.serial, "certificate renewed");
            }
            Err(error) => {
                let left =
                    current.identity.peer().map_or(Duration::ZERO, |peer| peer.expires.since(now(shared)));
                tracing::warn!(error = chain(&error), left = %Rough(left), "certificate not renewed");
                let delay = backoff.next_delay(&mut rand::rng());
                shared.clock.sleep(delay).await;
            }
        }
    }
}

async fn wait_until_due(shared: &Shared) {
    loop {
        // A certificate that cannot be read is due.
        let due = shared.membership.borrow().identity.peer().map_or(Timestamp(0), |peer| peer.renew_at());
        let left = due.since(now(shared));
        if left.is_zero() {
            return;
        }
        shared.clock.sleep(left.clamp(BLINK, NAP)).await;
    }
}

async fn renew(shared: &Shared, current: &Membership) -> Result<Peer, RenewalError> {
    let (key, csr) = new_key()?;
    let anchor = Anchor::Authority(current.trust.clone());
    let time = tls_time(&shared.clock);
    let dialer = Dialer::new(&anchor, Some(&current.identity), Protocol::Api, shared.timing, time)?;
    let server = dialer.dial(&addresses(shared)).await.map_err(CallError::from)?;
    let response: RenewResponse = server.call(Method::POST, wire::RENEW, &RenewRequest { csr }).await?;
    let identity = Identity { certificate: response.certificate, key };
    check_identity(current.node, &identity)?;
    let peer = identity.peer()?;
    let renewed = Membership { identity, trust: Trust { ca: response.ca }, ..current.clone() };
    shared.home.write(&renewed)?;
    shared.membership.send_replace(Arc::new(renewed));
    Ok(peer)
}

fn addresses(shared: &Shared) -> Vec<ServerAddress> {
    let servers = shared.servers.borrow();
    servers.servers.iter().flat_map(|server| &server.addresses).filter_map(|text| text.parse().ok()).collect()
}

fn now(shared: &Shared) -> Timestamp {
    Timestamp(shared.clock.now().0)
}
