//! Tries whether endpoints take connections again that had not, so that no request is risked on it.
//!
//! - Only those are tried whose breaker is open for that, once its time is over; while nothing is, this looks at one number a second.
//! - A connection that is taken closes no breaker: one request then tries. One that is not keeps it open, for twice as long.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures::future::join_all;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Moment, table::Table};

const EVERY: Duration = Duration::from_secs(1);
/// At once.
const MOST: usize = 256;

/// Probes what is to be, until `stop`.
pub(crate) async fn run(table: Arc<ArcSwap<Table>>, stop: CancellationToken) {
    let every = async {
        loop {
            tokio::time::sleep(EVERY).await;
            round(&table.load_full()).await;
        }
    };
    // Cancel-safe: what is left is connections over which nothing was sent.
    let _ = stop.run_until_cancelled(every).await;
}

/// Probes what is to be now.
pub(crate) async fn round(table: &Table) {
    let probes = table.probes(Moment::now()).into_iter().take(MOST);
    join_all(probes.map(|probe| async move {
        let connected = timeout(probe.timeout(), TcpStream::connect(probe.address())).await;
        probe.done(matches!(connected, Ok(Ok(_))), Moment::now());
    }))
    .await;
}
