//! The agent's side of the gateway processes: starts one, or finds it running, and keeps all of them at the table that is wanted.
//!
//! - A node without routes needs no process: the first one is started with the first route.
//! - Whoever connects tells the whole table, and each that follows; what is overtaken meanwhile is not told at all.
//! - A table is served when the process that takes the connections and every retired one that still runs have acknowledged it.
//! - A process that does not acknowledge in time is ended. The one that takes the connections is started again, at once.
//! - The agent has duplicates of the sockets. While a gateway that was killed is started again, clients are kept waiting in the kernel's queue;
//!   if it is not back soon, they are refused.
//! - The agent's end, however it comes, is not theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use wharf_model::{GatewayStats, Protocol, Revision, RouteTable, TaskId};
use wharf_process::{
    Backoff, Tasks, blocking,
    detached::{self, Caller, Door, Link, LinkReader, LinkWriter, Program},
};

use super::{
    ask_for_sockets, current, give_sockets,
    protocol::{self, Ask, Say, Status},
    shelf, socket_of, sockets,
};
use crate::{RouteKey, listen};

/// How long a process has to acknowledge: a large table on a busy machine.
const ACKNOWLEDGED: Duration = Duration::from_secs(20);
/// How long [`GatewayProcess::publish`] waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long processes have to say what went through.
const ANSWER: Duration = Duration::from_secs(2);
/// Between looks at whether an acknowledgement is late.
const TICK: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long sockets of a gateway that is gone are kept.
const KEPT: Duration = Duration::from_secs(5);
/// After duplicates of sockets could not be had.
const AGAIN: Duration = Duration::from_secs(1);
/// A process that was there for that long was no failure to start.
const STEADY: Duration = Duration::from_millis(200);

/// The gateway process with its files in `folder`; `arguments` make the running executable that process.
#[must_use]
pub fn program(folder: &Path, arguments: Vec<std::ffi::OsString>) -> Program {
    Program::own(arguments, current(folder))
}

/// The gateway of a node, with all its processes. Clones are the same one.
#[derive(Clone)]
pub struct GatewayProcess {
    shared: Arc<Shared>,
}

struct Shared {
    program: Program,
    folder: PathBuf,
    tasks: Tasks,
    wanted: watch::Sender<Wanted>,
    known: watch::Sender<Known>,
    /// Tells of changes of what people and servers are told.
    changed: watch::Sender<()>,
    starts: AtomicU64,
    /// Duplicates of the sockets that are listened on.
    kept: Mutex<Vec<(RouteKey, OwnedFd)>>,
    /// What taken ports' problems are called by whom may see more than the process.
    holders: Mutex<BTreeMap<String, String>>,
}

/// What the processes are to be told. Things with a number have changed if it has.
#[derive(Default, Clone)]
struct Wanted {
    table: Option<Table>,
    /// Times that what went through was asked for.
    stats: u64,
}

#[derive(Clone)]
struct Table {
    number: u64,
    /// That of the first with the same content.
    content: u64,
    version: Revision,
    /// Nothing is to be served.
    is_empty: bool,
    written: Arc<[u8]>,
}

/// What is known of the processes.
#[derive(Default)]
struct Known {
    /// It was tried to find them.
    has_looked: bool,
    /// None runs, and none is needed.
    idle: bool,
    /// The one that takes the connections, while there is a link to it.
    current: Option<u32>,
    /// All that may still begin something at an endpoint.
    processes: BTreeMap<u32, Seen>,
    /// Why none takes connections.
    absent: Option<String>,
}

/// What is known of one process.
#[derive(Default)]
struct Seen {
    /// It takes no connections, and is kept at the table by a task of its own.
    is_followed: bool,
    /// The number of the last table it acknowledged.
    served: u64,
    status: Status,
    stats: Option<(u64, GatewayStats)>,
}

impl Known {
    fn serves(&self, table: &Table) -> bool {
        let nobody = self.idle && table.is_empty;
        // One that has just retired says so before this hears of its successor.
        let current = self.current.and_then(|pid| self.processes.get(&pid));
        let all = current.is_some_and(|seen| !seen.status.retired)
            && self.processes.values().all(|seen| seen.served >= table.number);
        nobody || all
    }
}

impl GatewayProcess {
    /// Starts the process once there is something to serve, or finds it running, and looks after it until `tasks` end. It goes on then.
    #[must_use]
    pub fn start(program: Program, tasks: &Tasks) -> Self {
        let folder = program.socket.parent().map(Path::to_owned).unwrap_or_default();
        let shared = Arc::new(Shared {
            program,
            folder,
            tasks: tasks.clone(),
            wanted: watch::Sender::default(),
            known: watch::Sender::default(),
            changed: watch::Sender::default(),
            starts: AtomicU64::new(0),
            kept: Mutex::default(),
            holders: Mutex::default(),
        });
        let (running, stop) = (Arc::clone(&shared), tasks.token());
        tasks.spawn("gateway process", async move { stop.run_until_cancelled(running.run()).await });
        let (running, stop) = (Arc::clone(&shared), tasks.token());
        tasks.spawn("gateway sockets", async move { stop.run_until_cancelled(running.lend_sockets()).await });
        Self { shared }
    }

    /// Serves this table from now on. Whether it and no older one is served already, by every process: if not, it will be, and
    /// [`GatewayProcess::version`] says when. Called again, it goes on waiting.
    pub async fn publish(&self, table: &RouteTable) -> bool {
        let written: Arc<[u8]> = match protocol::write(table) {
            Ok(written) => written.into(),
            Err(error) => {
                tracing::error!(%error, "routes cannot be written");
                return false;
            }
        };
        let RouteTable {
            version,
            routes,
            services,
            certificates,
            challenges,
            ticket_keys: _,
            unheard: _,
            gone: _,
            withheld: _,
        } = table;
        let is_empty =
            routes.is_empty() && services.is_empty() && certificates.is_empty() && challenges.is_empty();
        self.shared.wanted.send_if_modified(|wanted| {
            let before = wanted.table.as_ref();
            let without_version = protocol::without_version;
            let same = before.filter(|table| without_version(&table.written) == without_version(&written));
            if same.is_some_and(|table| table.version == *version) {
                return false;
            }
            let number = before.map_or(1, |table| table.number + 1);
            let content = same.map_or(number, |table| table.content);
            wanted.table = Some(Table { number, content, version: *version, is_empty, written });
            true
        });
        let Some(table) = self.shared.wanted.borrow().table.clone() else { return false };
        let mut known = self.shared.known.subscribe();
        timeout(PATIENCE, known.wait_for(|known| known.serves(&table))).await.is_ok()
    }

    /// The version of the table that all processes serve, if they serve the one that was last published.
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        let wanted = self.shared.wanted.borrow();
        wanted
            .table
            .as_ref()
            .filter(|table| self.shared.known.borrow().serves(table))
            .map(|table| table.version)
    }

    /// What is not as it should be, in words for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let known = self.shared.known.borrow();
        let holders = self.shared.holders.lock();
        let of_processes = known.processes.values().flat_map(|seen| &seen.status.problems);
        let named = of_processes.map(|problem| holders.get(problem).unwrap_or(problem).clone());
        known.absent.iter().cloned().chain(named).collect()
    }

    /// The ports the processes listen on; none while they have not been met.
    #[must_use]
    pub fn ports(&self) -> Option<BTreeSet<u16>> {
        let known = self.shared.known.borrow();
        let ports = known.processes.values().flat_map(|seen| seen.status.ports.iter().copied()).collect();
        known.has_looked.then_some(ports)
    }

    /// Tasks that the served table does not have, and how much is still under way with each in all processes together. Read after
    /// [`GatewayProcess::publish`] has answered yes, a task that table does not have and this does not either has nothing left, for good.
    #[must_use]
    pub fn draining(&self) -> BTreeMap<TaskId, u64> {
        let known = self.shared.known.borrow();
        let mut tasks = BTreeMap::new();
        for (task, under_way) in known.processes.values().flat_map(|seen| &seen.status.draining) {
            *tasks.entry(*task).or_default() += under_way;
        }
        tasks
    }

    /// Tells when problems, ports or what drains may have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// What went through all processes, as they say now; what they last said if one does not answer.
    pub async fn stats(&self) -> GatewayStats {
        let mut number = 0;
        self.shared.wanted.send_modify(|wanted| {
            wanted.stats += 1;
            number = wanted.stats;
        });
        let mut known = self.shared.known.subscribe();
        let has_said = |seen: &Seen| seen.stats.as_ref().is_some_and(|(said, _)| *said >= number);
        let all = known.wait_for(|known| known.processes.values().all(has_said));
        let _ = timeout(ANSWER, all).await;
        let known = self.shared.known.borrow();
        let mut sum = GatewayStats::default();
        for (_, stats) in known.processes.values().filter_map(|seen| seen.stats.as_ref()) {
            sum.add(stats);
        }
        sum
    }

    /// How many listening sockets are kept for the process that comes after one that is killed.
    #[must_use]
    pub fn kept_sockets(&self) -> usize {
        self.shared.kept.lock().len()
    }

    /// How often a process was started.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.shared.starts.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            self.needed().await;
            let mut met = None;
            let error = match self.program.reach().await {
                Ok((link, started)) => {
                    if started {
                        self.starts.fetch_add(1, Ordering::Relaxed);
                    }
                    let pid = link.peer.pid;
                    tracing::info!(pid, started, "connected to the gateway process");
                    met = Some(Instant::now());
                    self.meet(pid);
                    let error = tokio::select! {
                        error = self.speak(pid, link) => error,
                        // Never ends; dropped at any point it has what it had.
                        error = self.keep_sockets(pid) => error,
                    };
                    self.part(pid);
                    error
                }
                Err(error) => error,
            };
            tracing::warn!(%error, "no connection to the gateway process");
            let absent =
                format!("routes are not kept up to date: no connection to the gateway process: {error}");
            self.know(|known| (known.has_looked, known.absent) = (true, Some(absent)));
            if met.is_some_and(|since| since.elapsed() > STEADY) {
                backoff.reset();
                // Without a pause: every millisecond is a refused connection.
                continue;
            }
            let pause = backoff.next_delay(&mut rand::rng());
            sleep(pause).await;
        }
    }

    /// Returns when there is something to serve, or a process runs that is to be told.
    async fn needed(&self) {
        let mut wanted = self.wanted.subscribe();
        loop {
            let serves = wanted.borrow_and_update().table.as_ref().is_some_and(|table| !table.is_empty);
            let runs = |path: &Path| std::os::unix::net::UnixStream::connect(path).is_ok();
            if serves
                || runs(&self.program.socket)
                || sockets(&self.folder).iter().any(|(_, path)| runs(path))
            {
                self.know(|known| known.idle = false);
                return;
            }
            self.know(|known| {
                (known.has_looked, known.idle, known.absent) = (true, true, None);
                known.processes.clear();
            });
            self.kept.lock().clear();
            // The sender is in `self`.
            let _ = wanted.changed().await;
        }
    }

    /// The process `pid` takes the connections; all others are found.
    fn meet(self: &Arc<Self>, pid: u32) {
        let mut others: BTreeMap<_, _> = sockets(&self.folder).into_iter().collect();
        others.remove(&pid);
        self.know(|known| {
            // Of those that ended in an orderly way nothing is left.
            known
                .processes
                .retain(|other, seen| *other == pid || others.contains_key(other) || seen.is_followed);
            others.retain(|other, _| {
                !std::mem::replace(&mut known.processes.entry(*other).or_default().is_followed, true)
            });
            // What it acknowledged to an agent before says nothing to this one.
            known.processes.entry(pid).or_default().served = 0;
            (known.current, known.absent) = (Some(pid), None);
        });
        for (pid, path) in others {
            self.follow(pid, path);
        }
    }

    /// There is no link to the process any more that took the connections.
    fn part(self: &Arc<Self>, pid: u32) {
        let mut retired = false;
        self.know(|known| {
            known.current = None;
            if let Some(seen) = known.processes.get_mut(&pid).filter(|seen| seen.status.retired) {
                (retired, seen.is_followed) = (true, true);
            }
        });
        if retired {
            self.follow(pid, socket_of(&self.folder, pid));
        }
        let (shared, stop) = (Arc::clone(self), self.tasks.token());
        self.tasks.spawn("gateway sockets for a while", async move {
            let _ = stop.run_until_cancelled(sleep(KEPT)).await;
            // Nobody shall wait for a gateway that does not come back.
            if shared.known.borrow().current.is_none() {
                shared.kept.lock().clear();
            }
        });
    }

    /// Keeps duplicates of the sockets that a process listens on.
    async fn keep_sockets(&self, pid: u32) -> io::Error {
        let mut known = self.known.subscribe();
        let mut have = None;
        loop {
            let opened = |known: &Known| Some(known.processes.get(&pid)?.status.sockets);
            let Ok(now) = known.wait_for(|known| opened(known) != have).await.map(|known| opened(&known))
            else {
                return io::Error::other("no longer wanted");
            };
            match ask_for_sockets(&socket_of(&self.folder, pid)).await {
                Ok(given) => {
                    let sockets = given.map(|(_, sockets)| sockets).unwrap_or_default();
                    // Those of datagrams are left out: their port would stay taken for as long as this has them.
                    let streams = sockets.into_iter().filter(|(key, _)| key.protocol == Protocol::Tcp);
                    *self.kept.lock() = streams.collect();
                    have = now;
                }
                Err(error) => {
                    tracing::debug!(%error, "sockets are not kept");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Gives the sockets that are kept to a process that begins.
    async fn lend_sockets(self: Arc<Self>) {
        let door = loop {
            match Door::open(&shelf(&self.folder)) {
                Ok(door) => break door,
                Err(error) => {
                    tracing::warn!(%error, "sockets of a gateway that is killed cannot be kept");
                    sleep(LONGEST_PAUSE).await;
                }
            }
        };
        loop {
            match door.accept().await {
                Ok(caller) => {
                    let (shared, stop) = (Arc::clone(&self), self.tasks.token());
                    self.tasks.spawn("gateway sockets lent", async move {
                        if let Some(Err(error)) = stop.run_until_cancelled(shared.lend(caller)).await {
                            tracing::debug!(%error, "sockets are not given");
                        }
                    });
                }
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    async fn lend(&self, caller: Caller) -> io::Result<()> {
        let mut link = caller.greet().await?;
        let Ask::HandOver = serde_json::from_slice(&link.read().await?)? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let duplicate =
            |(key, socket): &(RouteKey, OwnedFd)| Ok((*key, socket.as_fd().try_clone_to_owned()?));
        let sockets: io::Result<Vec<_>> = self.kept.lock().iter().map(duplicate).collect();
        give_sockets(&mut link, sockets?).await
    }

    /// Keeps a process that takes no connections at the table until it is gone.
    fn follow(self: &Arc<Self>, pid: u32, path: PathBuf) {
        let (shared, stop) = (Arc::clone(self), self.tasks.token());
        self.tasks.spawn(format!("retired gateway process {pid}"), async move {
            let following = async {
                loop {
                    match Link::connect(&path).await {
                        Ok(Some(link)) => {
                            let error = shared.speak(pid, link).await;
                            tracing::debug!(pid, %error, "no connection to a retired gateway process");
                        }
                        // A socket on which nobody listens.
                        Ok(None) => break,
                        Err(error) => {
                            tracing::warn!(pid, %error, "a retired gateway process does not answer, and is ended");
                            let _ = detached::evict(&path).await;
                        }
                    }
                    sleep(FIRST_PAUSE).await;
                }
                let _ = fs::remove_file(&path);
                shared.know(|known| drop(known.processes.remove(&pid)));
            };
            stop.run_until_cancelled(following).await;
        });
    }

    /// Tells a process what is wanted, and hears what it says, until it is gone, or another one has taken its place; says how that showed.
    async fn speak(&self, pid: u32, link: Link) -> io::Error {
        let (reader, writer) = link.split();
        // Neither goes on without the other: nothing is cut off in the middle that would.
        tokio::select! {
            error = self.hear(pid, reader) => error,
            error = self.tell(pid, writer) => error,
        }
    }

    async fn tell(&self, pid: u32, mut writer: LinkWriter) -> io::Error {
        let mut wanted = self.wanted.subscribe();
        let (mut told, mut content, mut stats) = (0, 0, 0);
        let mut late: Option<(u64, Instant)> = None;
        loop {
            let now = wanted.borrow_and_update().clone();
            let telling = async {
                if let Some(table) = now.table.as_ref().filter(|table| table.number != told) {
                    let is_new = table.content != content;
                    let ask = Ask::Table { number: table.number, content: is_new };
                    writer.write(&[&serde_json::to_vec(&ask)?]).await?;
                    if is_new {
                        writer.write(&[&table.written]).await?;
                    }
                    (told, content) = (table.number, table.content);
                }
                if now.stats != stats {
                    stats = now.stats;
                    writer.write(&[&serde_json::to_vec(&Ask::Stats { number: stats })?]).await?;
                }
                io::Result::Ok(())
            };
            if let Err(error) = telling.await {
                return error;
            }
            let served = self.known.borrow().processes.get(&pid).map_or(0, |seen| seen.served);
            let waits = served < told;
            // Since when it has acknowledged nothing, while there was something.
            late = waits
                .then(|| late.filter(|(before, _)| *before == served))
                .map(|late| late.unwrap_or_else(|| (served, Instant::now())));
            if late.is_some_and(|(_, since)| since.elapsed() > ACKNOWLEDGED) {
                let _ = detached::evict(&socket_of(&self.folder, pid)).await;
                return io::Error::other("it did not acknowledge in time, and was ended");
            }
            tokio::select! {
                // Cancel-safe: it only waits.
                changed = wanted.changed() => if changed.is_err() { return io::Error::other("no longer wanted") },
                () = sleep(TICK), if waits => {}
            }
        }
    }

    async fn hear(&self, pid: u32, mut reader: LinkReader) -> io::Error {
        loop {
            let said = match reader.read().await {
                Ok(frame) => serde_json::from_slice(&frame),
                Err(error) => return error,
            };
            match said {
                Ok(Say::Served { number, status }) => {
                    self.name_holders(&status).await;
                    self.heard(pid, |seen| (seen.served, seen.status) = (number, status));
                }
                Ok(Say::Status(status)) => {
                    let retired = status.retired;
                    self.name_holders(&status).await;
                    self.heard(pid, |seen| seen.status = status);
                    self.know(|known| known.has_looked |= known.current == Some(pid));
                    if retired && self.known.borrow().current == Some(pid) {
                        return io::Error::other("another process takes the connections");
                    }
                }
                Ok(Say::Stats { number, stats }) => {
                    self.known.send_modify(|known| {
                        if let Some(seen) = known.processes.get_mut(&pid) {
                            seen.stats = Some((number, stats));
                        }
                    });
                }
                Ok(Say::NotUnderstood { why }) => {
                    // It would go on with requests to tasks that are gone.
                    tracing::warn!(
                        pid,
                        why,
                        "a gateway process of another build cannot read the routes, and is ended"
                    );
                    let _ = detached::evict(&socket_of(&self.folder, pid)).await;
                    return io::Error::other("it cannot read the routes");
                }
                Ok(said @ Say::Sockets(_)) => return io::Error::other(format!("it said {said:?}")),
                Err(error) => return error.into(),
            }
        }
    }

    fn heard(&self, pid: u32, change: impl FnOnce(&mut Seen)) {
        self.know(|known| {
            if let Some(seen) = known.processes.get_mut(&pid) {
                change(seen);
            }
        });
    }

    fn know(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(change);
        self.changed.send_replace(());
    }

    /// A gateway process may not see who has a port; the agent may.
    async fn name_holders(&self, status: &Status) {
        let taken = status.taken.clone();
        let named = if taken.is_empty() {
            BTreeMap::new()
        } else {
            let name = |key| Some((listen::taken(key, None), listen::taken(key, Some(listen::holder(key)?))));
            blocking(move || taken.into_iter().filter_map(name).collect()).await
        };
        *self.holders.lock() = named;
    }
}
