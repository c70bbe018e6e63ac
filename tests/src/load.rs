//! Clients that ask without pause, check every answer, and say of each that was lost when and how.
//!
//! - A request is lost when it was sent, whole or in part, and no complete and right answer came. Nothing is asked twice.
//! - A connection that the server closes while nothing is under way on it is no loss: the next request opens another.
//! - A WebSocket that the server closes with a close frame is opened again; messages it had not answered yet are counted apart, since
//!   it was the service's own word. One that ends without is a loss if a message was unanswered.
//! - All run on one thread, in the network namespace of whoever starts them.

mod clients;

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;

/// What a client does all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `GET /` over HTTP/1.1, one after the other on a connection that stays.
    KeepAlive,
    /// The same, each on a connection of its own.
    Fresh,
    /// `POST /echo` with 2 KiB over HTTP/1.1.
    Post,
    /// `GET /` over HTTP/2, four at a time on a connection.
    Http2,
    /// Messages over a WebSocket, each of which has to come back.
    WebSocket,
    /// A download that takes 20 seconds.
    Download,
    /// `GET /` with the cookies that were set; the same task has to answer while it is there.
    Sticky,
}

impl Kind {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Fresh => "new connections",
            Self::Post => "posts",
            Self::Http2 => "HTTP/2",
            Self::WebSocket => "WebSockets",
            Self::Download => "downloads",
            Self::Sticky => "sticky",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who asks what of whom.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many clients of each kind.
    pub clients: Vec<(Kind, usize)>,
    /// Where they ask: each client takes the next one and stays there.
    pub targets: Vec<SocketAddr>,
    /// Where that is asked for by name, before each connection: the name, of the resolver that containers have. The port is the target's.
    pub resolve: Option<String>,
    /// The host that they ask for; `sticky.` and this by those with cookies, unless they find it by name.
    pub host: String,
    /// How long a client waits between an answer and the next request.
    pub pause: Duration,
    /// Answers with 500 are right as well, which gateways do not give by themselves: for releases that are to fail.
    pub may_fail: bool,
}

/// What a kind of clients met.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Requests or messages that were sent.
    pub asked: u64,
    /// Those that were lost.
    pub lost: u64,
    /// Answered with 500, where that may be. Not lost.
    pub failed: u64,
    /// Messages that a closed WebSocket had not answered.
    pub unanswered_at_close: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// How often another task answered than the one before.
    pub moved: u64,
    /// The longest time an answer took.
    pub slowest: Duration,
    /// When, since the start, and how: the first of the lost.
    pub how: Vec<(Duration, String)>,
    /// Answers by what the task calls itself.
    pub names: BTreeMap<String, u64>,
}

impl Figures {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.lost += other.lost;
        self.failed += other.failed;
        self.unanswered_at_close += other.unanswered_at_close;
        self.connections += other.connections;
        self.moved += other.moved;
        self.slowest = self.slowest.max(other.slowest);
        self.how.extend(other.how.iter().cloned());
        self.how.sort();
        self.how.truncate(20);
        for (name, count) in &other.names {
            *self.names.entry(name.clone()).or_default() += count;
        }
    }
}

/// What all clients met, by kind.
pub type Report = BTreeMap<Kind, Figures>;

/// All kinds together.
pub fn total(report: &Report) -> Figures {
    report.values().fold(Figures::default(), |mut all, figures| {
        all.add(figures);
        all
    })
}

/// Switch and gauges of a load, for whoever watches it.
#[derive(Debug, Default)]
pub struct Watch {
    stop: AtomicBool,
    asked: AtomicU64,
    lost: AtomicU64,
}

impl Watch {
    /// Has the clients end once what they have under way is answered.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
    /// Requests so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
    /// Lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Asks until `watch` says stop. Blocks; to be called where the clients are to be.
///
/// # Errors
/// If the clients cannot be started. What they meet is in the report.
pub fn run(plan: &Plan, watch: &Arc<Watch>) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let started = Instant::now();
    let mut clients = Vec::new();
    let mut targets = plan.targets.iter().copied().cycle();
    for (kind, count) in &plan.clients {
        for number in 0..*count {
            let target = targets.next().unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 80)));
            let client = clients::Client::new(*kind, target, plan, Arc::clone(watch), started, number);
            clients.push((*kind, local.spawn_local(client.run())));
        }
    }
    local.block_on(&runtime, async move {
        let mut report = Report::new();
        for (kind, client) in clients {
            report.entry(kind).or_default().add(&client.await?);
        }
        Ok(report)
    })
}
