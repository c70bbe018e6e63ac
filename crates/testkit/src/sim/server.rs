//! A simulated server: runs of the real control plane that come and go on one store.
//!
//! Everything a server does by itself is [`wharf_server::Works`]; people's requests go through the API's own router. Only the port, TLS and
//! the process around them are left out.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use axum::{Router, body::Body};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tower::ServiceExt as _;
use wharf_api::transport::{Peer, PeerKind, Timing};
use wharf_engine::Leases;
use wharf_model::{NodeId, ServerId, Timestamp};
use wharf_process::{Shutdown, Tasks};
use wharf_server::{
    Parts, Works, http as api, leader::Timing as LeaderTiming, pki::Authority, seal::SealKey,
    sessions::Sessions, state::State,
};

use super::{
    chance::Dice,
    invariants::Checker,
    life::Life,
    link::{End, Net, Socket},
    store::{Condition, Reach, Shelf},
    time::{Epoch, MachineClock, Wrong},
};

/// A server's machine.
pub struct SimServer {
    /// Its number.
    pub number: usize,
    /// How well the store does for it.
    pub condition: Arc<Condition>,
    /// Its clock.
    pub wrong: Wrong,
    id: ServerId,
    alone: bool,
    shelf: Arc<Shelf>,
    authority: Arc<Authority>,
    dice: Arc<Dice>,
    epoch: Epoch,
    net: Arc<Net>,
    checker: Arc<Checker>,
    run: Mutex<Option<Run>>,
}
#[derive(Clone)]
struct Run {
    life: Life,
    tasks: Tasks,
    connections: Tasks,
    shutdown: Shutdown,
    /// Once it has read the store.
    at_work: Arc<Mutex<Option<AtWork>>>,
}
#[derive(Clone)]
struct AtWork {
    shared: api::Shared,
    sessions: Arc<Sessions>,
    router: Router,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was done.
    Done(serde_json::Value),
    /// It was refused, with this code and message.
    Refused(String, String),
    /// Nobody knows.
    Unknown,
}

impl SimServer {
    /// One that does not run yet.
    #[expect(clippy::too_many_arguments, reason = "a machine has many parts")]
    pub fn new(
        number: usize,
        alone: bool,
        seed: u64,
        shelf: Arc<Shelf>,
        authority: Arc<Authority>,
        epoch: Epoch,
        net: Arc<Net>,
        checker: Arc<Checker>,
    ) -> Arc<Self> {
        let dice = Dice::new(seed, &format!("server {number}"));
        let offset = i64::try_from(dice.below(4_000)).unwrap_or_default() - 2_000;
        let drift = i64::try_from(dice.below(5)).unwrap_or_default() - 2;
        Arc::new(Self {
            number,
            condition: Arc::default(),
            wrong: Wrong::by(offset, drift),
            id: ServerId::from_parts(1, [u8::try_from(number + 1).unwrap_or_default(); 10]),
            alone,
            shelf,
            authority,
            dice: Arc::new(dice),
            epoch,
            net,
            checker,
            run: Mutex::default(),
        })
    }

    /// Whether a process runs.
    pub fn runs(&self) -> bool {
        self.run.lock().as_ref().is_some_and(|run| !run.life.is_over())
    }
    /// What it knows, once it is at work.
    pub fn state(&self) -> Option<Arc<State>> {
        self.at_work().map(|at_work| Arc::clone(&at_work.shared.state))
    }
    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.at_work().is_some_and(|at_work| at_work.shared.lead.borrow().is_some())
    }
    /// The time that it shows.
    pub fn now(&self) -> Option<Timestamp> {
        self.at_work().map(|at_work| at_work.shared.now())
    }
    fn at_work(&self) -> Option<AtWork> {
        let run = self.run.lock();
        let run = run.as_ref().filter(|run| !run.life.is_over())?;
        run.at_work.lock().clone()
    }

    /// Starts a run, if there is none.
    pub fn start(self: &Arc<Self>) {
        if self.runs() {
            return;
        }
        let shutdown = Shutdown::new();
        let run = Run {
            life: Life::default(),
            tasks: Tasks::staged(&shutdown),
            connections: Tasks::new(&shutdown),
            shutdown,
            at_work: Arc::default(),
        };
        *self.run.lock() = Some(run.clone());
        let server = Arc::clone(self);
        let tasks = run.tasks.clone();
        tasks.spawn("start", async move { server.begin(run).await });
    }

    async fn begin(self: Arc<Self>, run: Run) {
        let reach = Arc::new(Reach {
            shelf: Arc::clone(&self.shelf),
            life: run.life.clone(),
            condition: Arc::clone(&self.condition),
            dice: Arc::clone(&self.dice),
        });
        let state = loop {
            match State::load(Arc::clone(&reach) as _, SealKey::new([7; 32])).await {
                Ok(state) => break state,
                // As whoever watches over the process: it is started again.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        };
        let parts = Parts {
            server: self.id,
            advertised: vec![format!("server-{}:7420", self.number)],
            store: if self.alone { "embedded" } else { "etcd" },
            backend: reach,
            etcd: None,
            state,
            authority: Arc::clone(&self.authority),
            clock: MachineClock::shared(self.epoch, self.wrong.clone()),
            leader: LeaderTiming::default(),
            witness: None,
            leases: Leases::default(),
            transport: Timing::default(),
        };
        let works = Works::begin(parts, &run.tasks, &run.connections);
        let router = api::router(Arc::clone(&works.shared));
        *run.at_work.lock() = Some(AtWork { shared: works.shared, sessions: works.sessions, router });
        // A part that fails ends the process; that is a mistake of ours, whatever brings it back.
        run.shutdown.requested().await;
        if let Some(failure) = run.tasks.failure() {
            let found = format!("server {}: {}", self.number, wharf_process::errors::chain(&failure));
            self.checker.violation("no part of a server fails", found);
        }
    }

    /// Ends the run where it stands.
    pub fn kill(&self) {
        if let Some(run) = self.run.lock().take() {
            run.life.end();
            run.tasks.abort();
            run.connections.abort();
            self.net.reset_all(End::Server(self.number));
        }
    }
    /// It does not die of its calls after all; if it has, it is cleared away.
    pub fn spare(&self) {
        let life = self.run.lock().as_ref().map(|run| run.life.clone());
        if let Some(life) = life {
            life.spare();
            if life.is_over() {
                self.kill();
            }
        }
    }
    /// It dies after so many more calls to its store.
    pub fn kill_after(&self, calls: u32) -> Option<Life> {
        let run = self.run.lock();
        let run = run.as_ref()?;
        run.life.die_after(calls);
        Some(run.life.clone())
    }

    /// Takes a node's connection; its end is answered.
    pub fn accept(&self, from: End, node: NodeId, serial: &str, dead: Arc<AtomicBool>) -> Option<Socket> {
        let at_work = self.at_work()?;
        let run = self.run.lock().clone()?;
        let peer = Peer {
            kind: PeerKind::Node(node),
            serial: serial.to_owned(),
            not_before: Timestamp(0),
            expires: Timestamp(u64::MAX),
        };
        if at_work.shared.state.read().is_revoked(&peer) {
            return None;
        }
        let (theirs, ours) = self.net.connect(from, End::Server(self.number), [dead, Arc::default()]);
        let sessions = Arc::clone(&at_work.sessions);
        run.connections.spawn(format!("session of {node}"), async move {
            sessions.run(ours, node, peer, None).await;
        });
        Some(theirs)
    }

    /// Asks the API, as a person does, who gives up after half a minute.
    pub async fn ask(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Answer {
        let Some(at_work) = self.at_work() else {
            return Answer::Refused("unreachable".to_owned(), String::new());
        };
        let Some(life) = self.run.lock().as_ref().map(|run| run.life.clone()) else { return Answer::Unknown };
        let user = Peer { kind: PeerKind::User("ada".to_owned()), ..Peer::anonymous() };
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let Ok(mut request) = request.body(Body::from(text)) else { return Answer::Unknown };
        request.extensions_mut().insert(user);
        let asking = async {
            let Ok(response) = at_work.router.oneshot(request).await;
            let status = response.status();
            let Ok(content) = response.into_body().collect().await else { return Answer::Unknown };
            let value = serde_json::from_slice(&content.to_bytes()).unwrap_or_default();
            answer(status, value)
        };
        tokio::select! {
            biased;
            () = life.over() => Answer::Unknown,
            answer = asking => answer,
            () = tokio::time::sleep(Duration::from_secs(30)) => Answer::Unknown,
        }
    }
}

fn answer(status: http::StatusCode, value: serde_json::Value) -> Answer {
    if status.is_success() {
        return Answer::Done(value);
    }
    let text = |name: &str| value.get(name).and_then(|text| text.as_str()).unwrap_or_default().to_owned();
    // Whatever was asked of a store that then failed may have been done.
    if status.is_server_error() { Answer::Unknown } else { Answer::Refused(text("code"), text("message")) }
}
