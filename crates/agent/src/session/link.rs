//! The link to one server: a connection that is made again whenever it breaks, and replaced when the certificate is renewed.

use std::{
    convert::Infallible,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wharf_api::transport::{
    DialError, InvalidIdentity, ServerAddress, Timing,
    client::{Dialer, Fault, Stream},
    reverse,
    tls::{Anchor, Protocol},
    wire::ServerEntry,
};
use wharf_model::Timestamp;
use wharf_process::{Backoff, Task, Tasks, errors::chain};

use super::{Membership, Node, Shared, addresses, router, tls_time};
use crate::network::Seeker;

const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Short, since until a server is back nobody here hears what has ended elsewhere. Who refuses a connection is alive, and it costs little.
const LONGEST_DELAY: Duration = Duration::from_millis(500);
/// For a TCP connection.
const CONNECT: Duration = Duration::from_millis(1500);
/// Between questions to a server that is silent. What is stale here after a cut is so for this long, and for what connecting takes.
const AGAIN: Duration = Duration::from_millis(250);
/// The same once it has been away for [`LONG`], and may well stay so.
const AGAIN_LATER: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(120);
/// A connection that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(5);
/// How long an old connection is kept beside a new one that the server has not used yet.
const UNUSED: Duration = Duration::from_secs(10);
/// How long requests may go on when the agent stops.
const FAREWELL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("not connected")]
    Dial(#[from] DialError),
    #[error("this node's certificate cannot be used")]
    Identity(#[from] InvalidIdentity),
}

impl LinkError {
    /// Whether no server has said anything at all.
    fn is_silence(&self) -> bool {
        match self {
            Self::Dial(DialError::TimedOut { after, .. }) => *after <= CONNECT,
            Self::Dial(error) => matches!(error, DialError::Unreachable { .. }),
            Self::Identity(_) => false,
        }
    }
}

/// A connection, served by a task of its own.
struct Connection {
    task: Task<Result<(), String>>,
    /// Cancelled by the first request.
    used: CancellationToken,
    /// Cancel it to take no more requests.
    retire: CancellationToken,
    dialer: Dialer,
    address: ServerAddress,
    fault: Fault,
}

enum End {
    Broken(String),
    Renewed,
}

/// Keeps a connection to `server` until `stop`.
pub(super) async fn run(
    shared: Arc<Shared>,
    node: Arc<dyn Node>,
    server: ServerEntry,
    tasks: Tasks,
    stop: CancellationToken,
) {
    let router = router::routes(node, Arc::clone(&shared), tasks.clone());
    let link = Link { router, shared, server, tasks, stop: stop.clone() };
    // Dropped anywhere: connections are tasks of their own, and end by the same token.
    stop.run_until_cancelled(link.keep()).await;
}

struct Link {
    shared: Arc<Shared>,
    router: Router,
    server: ServerEntry,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Link {
    async fn keep(&self) {
        let mut memberships = self.shared.membership.subscribe();
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut old: Option<Connection> = None;
        let mut last_failure = String::new();
        let mut lost = Instant::now();
        loop {
            let membership = Arc::clone(&memberships.borrow_and_update());
            let asked = Instant::now();
            let mut silent = false;
            let again = if lost.elapsed() < LONG { AGAIN } else { AGAIN_LATER };
            let failure = match self.connect(&membership, again).await {
                Ok(mut new) => {
                    let began = Instant::now();
                    tracing::debug!(server = %self.server.id, address = %new.address, "connected");
                    let end = self.watch(&mut new, &mut old, &mut memberships).await;
                    if began.elapsed() > LASTED {
                        backoff.reset();
                        lost = Instant::now();
                    }
                    match end {
                        End::Renewed => {
                            old = Some(new);
                            continue;
                        }
                        End::Broken(why) => why,
                    }
                }
                Err(error) => {
                    silent = error.is_silence() && asked.elapsed() >= CONNECT;
                    // In one word: the kernel has several for it, and takes turns.
                    if silent { self.nobody() } else { chain(&error) }
                }
            };
            // Once for each reason: a server that is away for a day is one line in the diary.
            if failure != last_failure {
                tracing::warn!(server = %self.server.id, reason = failure, "not connected to server");
                last_failure = failure;
            }
            if silent {
                // It was asked all the time, and is asked on: nobody is spared by a pause.
                continue;
            }
            let delay = backoff.next_delay(&mut rand::rng());
            // Dropped when the membership changes: a new certificate may be what helps.
            let _ = timeout(delay, memberships.changed()).await;
        }
    }

    fn nobody(&self) -> String {
        format!("nobody answers at {}", self.server.addresses.join(" or "))
    }

    /// Watches a connection until it ends or its certificate is renewed. Retires the old one as soon as this one is in use.
    async fn watch(
        &self,
        new: &mut Connection,
        old: &mut Option<Connection>,
        memberships: &mut tokio::sync::watch::Receiver<Arc<Membership>>,
    ) -> End {
        loop {
            let used = new.used.clone();
            tokio::select! {
                // Not dropped: polled by reference until it ends.
                end = &mut new.task => return End::Broken(new.why(end)),
                // Cancel-safe: waits for a flag or a moment.
                _ = timeout(UNUSED, used.cancelled()), if old.is_some() => {
                    if let Some(old) = old.take() {
                        old.retire.cancel();
                    }
                }
                // Cancel-safe: what changed stays to be seen.
                changed = memberships.changed() => match changed {
                    Ok(()) => return End::Renewed,
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }

    /// Asks a server that does not answer after each `again`.
    async fn connect(&self, membership: &Membership, again: Duration) -> Result<Connection, LinkError> {
        let anchor = Anchor::Authority(membership.trust.clone());
        let time = tls_time(&self.shared.clock);
        let timing = Timing { connect: CONNECT.min(self.shared.timing.connect), ..self.shared.timing };
        let dialer = Dialer::new(&anchor, Some(&membership.identity), Protocol::Node, timing, time)?;
        let dialer = dialer.insisting(again);
        let expires = membership.identity.peer()?.expires;
        let mut first = None;
        for address in addresses(&self.server) {
            // Dropped: what seeks waits for nothing but its turns.
            let connected = tokio::select! {
                connected = dialer.connect(&address) => connected,
                never = seek(&address, again) => match never {},
            };
            match connected {
                Ok(stream) => return Ok(self.serve(stream, dialer, address, expires)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(DialError::NoAddress).into())
    }

    fn serve(
        &self,
        stream: Stream,
        dialer: Dialer,
        address: ServerAddress,
        expires: Timestamp,
    ) -> Connection {
        let (used, retire, fault) = (CancellationToken::new(), CancellationToken::new(), stream.fault());
        let (router, used_by, timing) = (self.router.clone(), used.clone(), self.shared.timing);
        let service = service_fn(move |request: Request<Incoming>| {
            used_by.cancel();
            router.clone().oneshot(request.map(axum::body::Body::new))
        });
        let (retired, stop) = (retire.clone(), self.stop.clone());
        // For its end: when its certificate expires, the server cuts it.
        let clock = Arc::clone(&self.shared.clock);
        let task = self.tasks.spawn(format!("session with {}", self.server.id), async move {
            let mut connection = pin!(reverse::serve(stream, service, &timing));
            let ended = |end: Result<(), hyper::Error>| end.map_err(|error| chain(&error));
            tokio::select! {
                // Polled on below: nothing is dropped.
                end = connection.as_mut() => return ended(end),
                () = retired.cancelled() => {}
                () = stop.cancelled() => {}
            }
            connection.as_mut().graceful_shutdown();
            let left = expires.since(Timestamp(clock.now().0));
            tokio::select! {
                end = connection.as_mut() => ended(end),
                () = farewell(&stop) => Ok(()),
                () = clock.sleep(left) => Ok(()),
            }
        });
        Connection { task, used, retire, dialer, address, fault }
    }
}

/// Seeks a server on the wire after each `again`, if the kernel has lost it.
async fn seek(address: &ServerAddress, again: Duration) -> Infallible {
    if let (Ok(to), Ok(mut seeker)) = (address.host().parse(), Seeker::open()) {
        loop {
            tokio::time::sleep(again).await;
            if let Err(error) = seeker.seek(to) {
                tracing::trace!(%address, %error, "not sought");
            }
        }
    }
    std::future::pending().await
}

async fn farewell(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(FAREWELL).await;
}

impl Connection {
    /// Why it ended: what TLS said, if it did, else what HTTP/2 said.
    fn why(&self, end: Result<Result<(), String>, wharf_process::tasks::NoResult>) -> String {
        if let Some(error) = self.dialer.explain(&self.address, &self.fault) {
            let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            return format!("{}{hint}", chain(&error));
        }
        match end {
            Ok(Ok(())) => "the server closed the connection".to_owned(),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        }
    }
}
