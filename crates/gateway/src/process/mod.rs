//! The gateway as a process of its own: serves what it was last told, whether anybody is there to tell it more or not.
//!
//! - One speaks to it at a time, the agent: of two that do, the one that came later.
//! - It begins with what the process before it left: its sockets, and the table that it kept (`held`). So one that was killed serves again
//!   before anybody has told it anything. The agent has duplicates of the sockets meanwhile: who connects is kept waiting, not refused.
//! - A successor takes the sockets over while the process before still accepts: no client is refused, and none is cut. The one before retires: it
//!   takes no new connections, and ends when its last one is over, or after an hour.
//! - A retired process may still begin requests on connections it has. So it is told every table too, by the agent itself, which finds
//!   each process of the node at a socket of its own ([`sockets`]); a table counts as served when all of them serve it.
//! - Nobody's absence ends it: an agent that is away, and servers that are, leave it with its table for as long as that may be. What that means
//!   for tasks that are replaced meanwhile is in `ARCHITECTURE.md`.

mod held;
mod protocol;
mod remote;

pub use remote::{GatewayProcess, program};

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use wharf_model::{GatewayStats, RouteTable};
use wharf_process::{
    Shutdown, Tasks, blocking,
    detached::{self, Caller, Door, Link, LinkReader, LinkWriter, Starting},
};

use self::{
    held::Held,
    protocol::{Ask, Say, Status},
};
use crate::{AccessLog, AccessLogOptions, Gateway, GatewayOptions, HttpOptions, RouteKey};

/// How long the process before this one has to hand its sockets over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How long a retired process keeps the connections it has.
const RETIRED: Duration = Duration::from_secs(3600);
/// What connections have when the process is asked to end.
const GRACE: Duration = Duration::from_secs(10);
/// After an error of accepting.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is asked whether anybody needs this process.
const LONELY: Duration = Duration::from_secs(10);
/// After so many looks in a row at which there was nothing to do it ends.
const IDLE: u32 = 6;
/// Changes that come together are told together.
const TOGETHER: Duration = Duration::from_millis(5);
/// How often numbers are told that merely change, while there is something that people watch.
const WATCHED: Duration = Duration::from_secs(1);
/// And else.
const UNWATCHED: Duration = Duration::from_secs(30);

/// How a gateway process is set up.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// Its folder in memory, which nobody else may write to: sockets and the table.
    pub folder: PathBuf,
    /// How it deals with endpoints.
    pub gateway: GatewayOptions,
    /// How it deals with requests.
    pub requests: HttpOptions,
    /// Where requests are logged; nowhere if absent.
    pub access_log: Option<AccessLogOptions>,
}

/// Where whoever takes the connections is found.
fn current(folder: &Path) -> PathBuf {
    folder.join("gateway.sock")
}

/// Where an agent gives the sockets of a gateway that was killed to the next one.
fn shelf(folder: &Path) -> PathBuf {
    folder.join("gateway.shelf")
}

/// Where one process is found, whether it takes connections or not.
fn socket_of(folder: &Path, pid: u32) -> PathBuf {
    folder.join(format!("gateway-{pid}.sock"))
}

/// The sockets of all gateway processes with this folder, some of which may be left over from those that are gone.
fn sockets(folder: &Path) -> Vec<(u32, PathBuf)> {
    let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let pid = |name: &str| name.strip_prefix("gateway-")?.strip_suffix(".sock")?.parse().ok();
    files.filter_map(|file| Some((pid(file.file_name().to_str()?)?, file.path()))).collect()
}

struct Process {
    folder: PathBuf,
    gateway: Gateway,
    access_log: AccessLog,
    held: Held,
    /// Set once this process shall end.
    over: CancellationToken,
    /// Set once another process takes the connections.
    retired: CancellationToken,
    /// Ends the visit of whoever has the say.
    visit: Mutex<CancellationToken>,
    visited: AtomicBool,
    /// Held while the table is kept, which is the current process's alone to do.
    keeping: Mutex<()>,
}

/// Serves until its last connection is over once another process took its place, nobody needs it, or the process is asked to stop.
///
/// # Errors
/// If it cannot listen in its folder.
pub async fn serve(options: ProcessOptions, shutdown: &Shutdown) -> io::Result<()> {
    let tasks = Tasks::new(shutdown);
    // Connections have their time also when the process is asked to stop.
    let connections = Tasks::staged(shutdown);
    // And the log, after the last of them.
    let logging = Tasks::staged(shutdown);
    let ProcessOptions { folder, gateway, requests, access_log } = options;
    let access_log = AccessLog::new(access_log);
    let starting = Starting::wait(&folder.join("gateway.lock")).await?;
    let before = take_over(&folder).await;
    let gateway = Gateway::with(gateway, requests, &connections, access_log.clone());
    let process = Arc::new(Process::new(folder, gateway, access_log.clone())?);
    let before = match before {
        Some((link, sockets)) => {
            process.gateway.adopt(sockets);
            Some(link)
        }
        None => {
            process.gateway.adopt(kept_sockets(&process.folder).await);
            None
        }
    };
    process.begin().await;
    let own = socket_of(&process.folder, std::process::id());
    let door = Door::open(&own)?;
    take_place(&own, &current(&process.folder))?;
    if let Some(mut link) = before {
        // Both accept until it hears this; if it does not, it is gone.
        let _ = link.write(&[&serde_json::to_vec(&Ask::Took)?]).await;
    }
    drop(starting);
    tracing::info!("the gateway serves");
    {
        let stop = logging.token();
        logging.spawn("access log", async move { access_log.run(stop).await });
    }

    let stop = tasks.token();
    {
        let (gateway, stop) = (process.gateway.clone(), stop.clone());
        tasks.spawn("gateway", async move { gateway.run(stop).await });
    }
    {
        let (process, stop) = (Arc::clone(&process), stop.clone());
        tasks.spawn("needed", async move { stop.run_until_cancelled(process.while_needed()).await });
    }
    {
        let (process, stop) = (Arc::clone(&process), stop.clone());
        tasks.spawn("retirement", async move { stop.run_until_cancelled(process.retirement()).await });
    }
    loop {
        tokio::select! {
            // Cancel-safe: they wait for a flag.
            () = stop.cancelled() => break,
            () = process.over.cancelled() => break,
            // Cancel-safe by its own words.
            caller = door.accept() => match caller {
                Ok(caller) => {
                    let (process, stop) = (Arc::clone(&process), stop.clone());
                    tasks.spawn("visit", async move { process.receive(caller, stop).await });
                }
                Err(error) => {
                    tracing::debug!(%error, "visit not accepted");
                    sleep(AGAIN).await;
                }
            },
        }
    }
    tracing::info!(clients = process.gateway.clients(), "the gateway process ends");
    // Nobody shall wait for what it says any more.
    let _ = fs::remove_file(&own);
    let left = process.gateway.clients() > 0 && !process.retired.is_cancelled();
    let _ = connections.shutdown(if left { GRACE } else { Duration::ZERO }).await;
    let _ = logging.shutdown(GRACE).await;
    let _ = tasks.shutdown(Duration::ZERO).await;
    Ok(())
}

/// Lets `own` be found at `place` as well, in place of whoever was, from one moment to the next.
fn take_place(own: &Path, place: &Path) -> io::Result<()> {
    let new = own.with_extension("new");
    let _ = fs::remove_file(&new);
    fs::hard_link(own, &new)?;
    fs::rename(new, place)
}

/// Sockets and where each listens.
type Sockets = Vec<(RouteKey, OwnedFd)>;

/// Duplicates of the sockets of whoever is found there; none if nobody is. Whoever has them goes on with them, until it is told more.
async fn ask_for_sockets(at: &Path) -> io::Result<Option<(Link, Sockets)>> {
    let ask = async {
        let Some(mut link) = Link::connect(at).await? else { return Ok(None) };
        link.write(&[&serde_json::to_vec(&Ask::HandOver)?]).await?;
        let Say::Sockets(keys) = serde_json::from_slice(&link.read().await?)? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let files = link.receive_files(keys.len()).await?;
        Ok(Some((link, keys.into_iter().zip(files).collect())))
    };
    timeout(HAND_OVER, ask).await?
}

/// Gives duplicates of sockets to whoever asked.
async fn give_sockets(link: &mut Link, sockets: Sockets) -> io::Result<()> {
    let (keys, files): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    link.write(&[&serde_json::to_vec(&Say::Sockets(keys))?]).await?;
    link.send_files(&files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).await
}

/// The sockets that an agent has kept of a process that is gone.
async fn kept_sockets(folder: &Path) -> Sockets {
    match ask_for_sockets(&shelf(folder)).await {
        Ok(kept) => kept.map(|(_, sockets)| sockets).unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the agent gives no sockets");
            Vec::new()
        }
    }
}

/// The sockets of a process that runs, if one does. One that does not answer is ended, and so is one that does not hand over.
async fn take_over(folder: &Path) -> Option<(Link, Sockets)> {
    let socket = current(folder);
    match ask_for_sockets(&socket).await {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(%error, "the gateway process before this one does not hand over, and is ended");
            if let Err(error) = detached::evict(&socket).await {
                tracing::warn!(%error, "it could not be ended");
            }
            None
        }
    }
}

impl Process {
    fn new(folder: PathBuf, gateway: Gateway, access_log: AccessLog) -> io::Result<Self> {
        Ok(Self {
            held: Held::open(&folder)?,
            folder,
            gateway,
            access_log,
            over: CancellationToken::new(),
            retired: CancellationToken::new(),
            visit: Mutex::default(),
            visited: AtomicBool::new(false),
            keeping: Mutex::default(),
        })
    }

    /// Serves as the process before did.
    async fn begin(&self) {
        if let Some(table) = self.held.table() {
            self.gateway.apply(&table).await;
            tracing::info!(version = table.version.0, "the table that was served before is served");
        }
    }

    /// Returns once a retired process has nothing left, or its time is over.
    async fn retirement(&self) {
        self.retired.cancelled().await;
        let mut changes = self.gateway.changes();
        let until = Instant::now() + RETIRED;
        let empty = async {
            while self.gateway.clients() > 0 {
                // The sender lives as long as the gateway.
                let _ = changes.changed().await;
            }
        };
        if tokio::time::timeout_at(until, empty).await.is_err() {
            let clients = self.gateway.clients();
            tracing::warn!(clients, "connections are closed: another process took over an hour ago");
        }
        self.over.cancel();
    }

    /// Returns once nobody can tell this process anything, or there has been nothing to do for a while.
    async fn while_needed(&self) {
        let place = current(&self.folder);
        let own = inode(&socket_of(&self.folder, std::process::id()));
        let mut idle = 0;
        loop {
            sleep(LONELY).await;
            idle = if self.is_idle() { idle + 1 } else { 0 };
            if idle == IDLE {
                tracing::info!("there are no routes any more");
                self.over.cancel();
                return;
            }
            if self.visited.load(Ordering::Acquire) || self.retired.is_cancelled() || inode(&place) == own {
                continue;
            }
            // Its folder is gone, or somebody else is there who took nothing over.
            tracing::info!("nobody needs the gateway process any more");
            self.over.cancel();
            return;
        }
    }

    /// Whether its table has nothing to serve, and nobody is connected. The agent starts a process when there is a route again.
    fn is_idle(&self) -> bool {
        let gateway = &self.gateway;
        gateway.version().is_some()
            && gateway.ports().is_empty()
            && gateway.problems().is_empty()
            && gateway.clients() == 0
    }

    /// Hears what somebody has to say until they are gone, or somebody else comes.
    async fn receive(&self, caller: Caller, stop: CancellationToken) {
        let said = async {
            let mut link = caller.greet().await?;
            let first = link.read().await?;
            if let Ask::HandOver = serde_json::from_slice(&first)? {
                return self.hand_over(link).await;
            }
            let visit = stop.child_token();
            std::mem::replace(&mut *self.visit.lock(), visit.clone()).cancel();
            self.visited.store(true, Ordering::Release);
            let (reader, writer) = link.split();
            match visit.run_until_cancelled(self.listen_to(first, reader, writer)).await {
                Some(ended) => {
                    self.visited.store(false, Ordering::Release);
                    ended
                }
                // Somebody else has the say.
                None => Ok(()),
            }
        };
        if let Some(Err(error)) = stop.run_until_cancelled(said).await {
            tracing::debug!(%error, "visit ended");
        }
    }

    async fn listen_to(&self, first: Vec<u8>, mut reader: LinkReader, writer: LinkWriter) -> io::Result<()> {
        let line = tokio::sync::Mutex::new(Line { writer, told: None });
        let hear = async {
            let mut frame = first;
            loop {
                let answer = self.hear(&frame, &mut reader).await?;
                let mut line = line.lock().await;
                let say = match answer {
                    Answer::Say(say) => say,
                    Answer::Served(number) => Say::Served { number, status: self.status() },
                    Answer::Status => Say::Status(self.status()),
                };
                line.write(say).await?;
                drop(line);
                frame = reader.read().await?;
            }
        };
        // Neither ends but by an error, and then the visit is over: nothing is cut off in the middle that goes on.
        tokio::select! {
            ended = hear => ended,
            ended = self.tell(&line) => ended,
        }
    }

    async fn hear(&self, frame: &[u8], reader: &mut LinkReader) -> io::Result<Answer> {
        Ok(match serde_json::from_slice(frame)? {
            Ask::Table { number, content } => {
                if content {
                    let written = reader.read().await?;
                    let parsed = blocking(move || {
                        serde_json::from_slice::<RouteTable>(&written).map(|table| (table, written))
                    });
                    let (table, written) = match parsed.await {
                        Ok(parsed) => parsed,
                        Err(error) => {
                            return Ok(Answer::Say(Say::NotUnderstood { why: error.to_string() }));
                        }
                    };
                    self.keep(&table, &written)?;
                    self.gateway.apply(&table).await;
                    tracing::debug!(version = table.version.0, "table served");
                    blocking(move || drop((table, written))).await;
                }
                Answer::Served(number)
            }
            Ask::Stats { number } => Answer::Say(Say::Stats { number, stats: self.stats() }),
            Ask::End => {
                self.over.cancel();
                Answer::Status
            }
            Ask::HandOver | Ask::Took => return Err(io::ErrorKind::InvalidData.into()),
        })
    }

    fn keep(&self, table: &RouteTable, written: &[u8]) -> io::Result<()> {
        let _keeping = self.keeping.lock();
        if self.retired.is_cancelled() { Ok(()) } else { self.held.keep(table, written) }
    }

    /// Says how the process is, whenever that is not what was said last.
    async fn tell(&self, line: &tokio::sync::Mutex<Line>) -> io::Result<()> {
        let mut changes = self.gateway.changes();
        loop {
            changes.mark_unchanged();
            let (watched, retired) = {
                let mut line = line.lock().await;
                let status = self.status();
                let watched = status.retired || !status.draining.is_empty() || !status.problems.is_empty();
                let retired = status.retired;
                if line.told.as_ref() != Some(&status) {
                    line.write(Say::Status(status)).await?;
                }
                (watched, retired)
            };
            tokio::select! {
                // Cancel-safe all: they only wait.
                _ = changes.changed() => sleep(TOGETHER).await,
                () = self.retired.cancelled(), if !retired => {}
                () = sleep(if watched { WATCHED } else { UNWATCHED }) => {}
            }
        }
    }

    /// Gives another process what we listen on, and retires once that one listens. If it does not, nothing has happened.
    async fn hand_over(&self, mut link: Link) -> io::Result<()> {
        if self.retired.is_cancelled() {
            return Err(io::Error::other("another process has taken over"));
        }
        give_sockets(&mut link, self.gateway.sockets()?).await?;
        // An agent only keeps them, and hangs up.
        if let Ask::Took = serde_json::from_slice(&link.read().await?)? {
            tracing::info!(pid = link.peer.pid, "another process takes the connections");
            {
                let _keeping = self.keeping.lock();
                self.retired.cancel();
            }
            self.gateway.retire().await;
        }
        Ok(())
    }

    fn status(&self) -> Status {
        Status {
            retired: self.retired.is_cancelled(),
            clients: self.gateway.clients(),
            problems: self.gateway.problems(),
            taken: self.gateway.taken(),
            ports: self.gateway.ports().into_iter().map(|(port, _)| port).collect(),
            sockets: self.gateway.socket_changes(),
            draining: self.gateway.draining(),
        }
    }

    fn stats(&self) -> GatewayStats {
        let process = wharf_model::GatewayProcess {
            pid: std::process::id(),
            retired: self.retired.is_cancelled(),
            clients: self.gateway.clients(),
            unlogged: self.access_log.unlogged(),
            entry: self.gateway.entry_counters(),
        };
        GatewayStats { processes: vec![process], ..self.gateway.stats() }
    }
}

/// What an agent is answered.
enum Answer {
    Say(Say),
    /// The table of this number is served, and how the process is when that is said.
    Served(u64),
    /// How the process is.
    Status,
}

/// The way to an agent. Everything that says how the process is goes through here in the order in which it was so: an agent believes
/// what it hears last.
struct Line {
    writer: LinkWriter,
    /// What was said last, with a table or without.
    told: Option<Status>,
}

impl Line {
    async fn write(&mut self, say: Say) -> io::Result<()> {
        self.writer.write(&[&serde_json::to_vec(&say)?]).await?;
        if let Say::Status(status) | Say::Served { status, .. } = say {
            self.told = Some(status);
        }
        Ok(())
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
