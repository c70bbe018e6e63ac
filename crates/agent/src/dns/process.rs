//! The DNS process: answers with what it was last told, whether anybody is there to tell it more or not.
//!
//! - One speaks to it at a time, the agent: of two that do, the one that came later.
//! - It begins with what the process before it left (`held`): its sockets, if that one still runs, else its files. A running one of
//!   another build goes on answering until this one does, on the same sockets, so that no question is lost; and this one acknowledges
//!   no newer table before the other has ended.
//! - It ends by itself when nobody can ask it or tell it anything: the agent is gone, and so are its networks or its folder.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use wharf_api::transport::Checksum;
use wharf_process::{
    Shutdown, Tasks, blocking,
    detached::{self, Caller, Door, Link, LinkReader, LinkWriter, Starting},
};

use super::{
    Responder, Upstreams,
    held::Held,
    protocol::{Ask, Content, Difference, Report, Say, Settings},
    zone::Zone,
};

/// How long what was received may take to be answered once another process receives: as long as upstream resolvers get, and a little.
const LEAVE: Duration = Duration::from_millis(4500);
/// How long the process before this one has to hand its sockets over.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Between attempts to listen where it did not work.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is asked whether anybody needs this process, while nobody speaks to it.
const LONELY: Duration = Duration::from_secs(10);

/// How a DNS process is set up.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// Its folder, which nobody else may write to: socket and files.
    pub folder: PathBuf,
}

impl ProcessOptions {
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("dns.sock")
    }
}

struct Process {
    options: ProcessOptions,
    responder: Responder,
    held: Held,
    /// What was last told.
    settings: Mutex<Option<Settings>>,
    /// The names that are served, if this process was told them.
    names: Mutex<Option<Names>>,
    /// Set once no other process answers any more.
    alone: CancellationToken,
    /// Set once this one shall not answer any more.
    over: CancellationToken,
    /// Ends the visit of whoever has the say.
    visit: Mutex<CancellationToken>,
    visited: AtomicBool,
    /// Another process is being given our sockets: nobody may change what it will find.
    leaving: AtomicBool,
    /// There is something that cannot be listened on.
    again: Notify,
}

/// Names that were told, and what stands for them.
struct Names {
    content: Content,
    sum: Checksum,
}

/// Serves until somebody else takes over, nobody needs it, or the process is asked to stop.
///
/// # Errors
/// If it cannot listen in its folder.
pub async fn serve(options: ProcessOptions, shutdown: &Shutdown) -> io::Result<()> {
    let tasks = Tasks::new(shutdown);
    // Answers what it received also when the process is asked to stop.
    let answering = Tasks::staged(shutdown);
    let starting = Starting::wait(&options.folder.join("dns.lock")).await?;
    let (link, addresses, files) = match take_over(&options).await {
        Some((link, addresses, files)) => (Some(link), addresses, files),
        None => (None, Vec::new(), Vec::new()),
    };
    let responder = Responder::new(Upstreams::Fixed(Vec::new()), &answering);
    responder.adopt(addresses, files);
    let process = Arc::new(Process::new(options, responder)?);
    process.begin().await;
    let door = Door::open(&process.options.socket())?;
    drop(starting);
    tracing::info!("DNS is served");

    let stop = tasks.token();
    {
        let (process, stop) = (Arc::clone(&process), stop.clone());
        tasks.spawn("process before", async move { stop.run_until_cancelled(process.outlive(link)).await });
    }
    {
        let (process, stop) = (Arc::clone(&process), stop.clone());
        tasks.spawn("listen again", async move { stop.run_until_cancelled(process.listen_again()).await });
    }
    {
        let (process, stop) = (Arc::clone(&process), stop.clone());
        tasks.spawn("needed", async move { stop.run_until_cancelled(process.while_needed()).await });
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
    process.responder.retire();
    answered(&answering).await;
    tracing::info!("the DNS process ends");
    // Ends the link to the process after us, last of all.
    let _ = answering.shutdown(Duration::ZERO).await;
    let _ = tasks.shutdown(Duration::ZERO).await;
    Ok(())
}

/// The sockets of a process that runs, if one does. One that does not answer is ended, and so is one that does not hand over.
async fn take_over(options: &ProcessOptions) -> Option<(Link, Vec<SocketAddr>, Vec<OwnedFd>)> {
    let socket = options.socket();
    let ask = async {
        let Some(mut link) = Link::connect(&socket).await? else { return Ok(None) };
        link.write(&[&serde_json::to_vec(&Ask::HandOver)?]).await?;
        loop {
            if let Say::Sockets(addresses) = serde_json::from_slice(&link.read().await?)? {
                let files = link.receive_files(addresses.len() * 2).await?;
                return io::Result::Ok(Some((link, addresses, files)));
            }
        }
    };
    match timeout(HAND_OVER, ask).await.map_err(io::Error::from).flatten() {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(%error, "the DNS process before this one does not hand over, and is ended");
            if let Err(error) = detached::evict(&socket).await {
                tracing::warn!(%error, "it could not be ended");
            }
            None
        }
    }
}

/// Waits until all that was received is answered, for as long as that can take.
async fn answered(tasks: &Tasks) {
    let deadline = Instant::now() + LEAVE;
    while tasks.running().iter().any(|name| name.starts_with("dns ")) && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
}

impl Process {
    fn new(options: ProcessOptions, responder: Responder) -> io::Result<Self> {
        Ok(Self {
            held: Held::open(options.folder.clone())?,
            options,
            responder,
            settings: Mutex::default(),
            names: Mutex::default(),
            alone: CancellationToken::new(),
            over: CancellationToken::new(),
            visit: Mutex::default(),
            visited: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            again: Notify::new(),
        })
    }

    /// Answers as the process before did. Names first, so that nothing is said without them.
    async fn begin(&self) {
        if let Some(Content { table, sources }) = self.held.names() {
            self.responder.publish(&table, &sources);
            tracing::info!(version = table.version.0, "names that were served before are served");
        }
        if let Some(settings) = self.held.settings() {
            self.configure(settings).await;
        }
        self.responder.forget_adopted();
    }

    /// Tells the process before that we answer, and waits until it is gone.
    async fn outlive(&self, before: Option<Link>) {
        if let Some(mut link) = before {
            let took = serde_json::to_vec(&Ask::Took).unwrap_or_default();
            let gone = async {
                link.write(&[&took]).await?;
                loop {
                    link.read().await?;
                }
            };
            let gone: Result<io::Result<()>, _> = timeout(LEAVE * 2, gone).await;
            if gone.is_err() {
                let pid = link.peer.pid;
                tracing::warn!(pid, "the DNS process before this one does not end, and is ended");
                let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        self.alone.cancel();
    }

    async fn configure(&self, settings: Settings) {
        self.responder.use_upstreams(settings.upstreams.clone());
        self.responder.listen(&settings.networks).await;
        *self.settings.lock() = Some(settings);
        self.again.notify_one();
    }

    /// Tries to listen where that did not work, as long as there is such a place.
    async fn listen_again(&self) {
        loop {
            self.again.notified().await;
            while !self.responder.problems().is_empty() {
                sleep(AGAIN).await;
                let settings = self.settings.lock().clone();
                if let Some(settings) = settings {
                    self.responder.listen(&settings.networks).await;
                }
            }
        }
    }

    /// Returns once nobody can ask this process or tell it anything.
    async fn while_needed(&self) {
        let own = std::fs::metadata(self.options.socket()).ok().map(|file| inode(&file));
        loop {
            sleep(LONELY).await;
            if self.visited.load(Ordering::Acquire) {
                continue;
            }
            let found = std::fs::metadata(self.options.socket()).ok().map(|file| inode(&file));
            let networks: Vec<_> = {
                let settings = self.settings.lock();
                settings.iter().flat_map(|settings| settings.networks.values().map(|at| at.address)).collect()
            };
            if found != own || !networks.into_iter().any(is_here) {
                tracing::info!("nobody needs the DNS process any more");
                self.over.cancel();
                return;
            }
        }
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
            if self.leaving.load(Ordering::Acquire) {
                return Err(io::Error::other("another process takes over"));
            }
            std::mem::replace(&mut *self.visit.lock(), visit.clone()).cancel();
            self.visited.store(true, Ordering::Release);
            let (mut reader, mut writer) = link.split();
            match visit.run_until_cancelled(self.listen_to(first, &mut reader, &mut writer)).await {
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

    async fn listen_to(
        &self,
        mut frame: Vec<u8>,
        reader: &mut LinkReader,
        writer: &mut LinkWriter,
    ) -> io::Result<()> {
        loop {
            self.hear(&frame, reader, writer).await?;
            frame = reader.read().await?;
        }
    }

    async fn hear(&self, frame: &[u8], reader: &mut LinkReader, writer: &mut LinkWriter) -> io::Result<()> {
        let answer = match serde_json::from_slice(frame)? {
            Ask::Settings(settings) => {
                self.held.keep_settings(&settings)?;
                self.configure(settings).await;
                Say::Report(self.report())
            }
            Ask::Names { number } => {
                let written = reader.read().await?;
                // Whoever answers beside us knows nothing of it.
                self.alone.cancelled().await;
                self.serve_names(written).await?;
                Say::Served { number }
            }
            Ask::Change { number, base } => {
                let written = reader.read().await?;
                self.alone.cancelled().await;
                match self.change_names(base, &written).await? {
                    true => Say::Served { number },
                    false => Say::Unknown { number },
                }
            }
            Ask::Report => Say::Report(self.report()),
            Ask::End => {
                self.over.cancel();
                return Ok(());
            }
            Ask::HandOver | Ask::Took => return Err(io::ErrorKind::InvalidData.into()),
        };
        writer.write(&[&serde_json::to_vec(&answer)?]).await
    }

    async fn serve_names(&self, written: Vec<u8>) -> io::Result<()> {
        let (zone, names, written) = blocking(move || {
            let content: Content = serde_json::from_slice(&written)?;
            let zone = Zone::new(&content.table, &content.sources, rand::random());
            io::Result::Ok((zone, Names { content, sum: Checksum::of(&written) }, written))
        })
        .await?;
        // What differences start from is not known again before all of this is done.
        let before = self.names.lock().take();
        self.held.keep_names(&written)?;
        let version = names.content.table.version.0;
        let zone = self.responder.serve_zone(zone);
        *self.names.lock() = Some(names);
        blocking(move || drop((before, zone, written))).await;
        tracing::debug!(version, "names served");
        Ok(())
    }

    /// Serves the names that are left after the difference. Whether it starts from those that are served.
    async fn change_names(&self, base: Checksum, written: &[u8]) -> io::Result<bool> {
        // As above: also if this is cut off anywhere.
        let Some(mut names) = self.names.lock().take_if(|names| names.sum == base) else {
            tracing::warn!(%base, "a difference does not start from the names that are served; all of them are asked for");
            return Ok(false);
        };
        let difference: Difference = serde_json::from_slice(written)?;
        let leaving = self.responder.leaving(&names.content, &difference);
        if names.content.amend(difference).is_err() {
            tracing::warn!(%base, "a difference does not fit the names that are served; all of them are asked for");
            return Ok(false);
        }
        names.sum = base.then(written);
        self.held.add_to_names(written, names.sum)?;
        let altered = leaving.is_some_and(|leaving| self.responder.alter(leaving, &names.content));
        if !altered {
            names = self.serve_anew(names).await;
        }
        tracing::debug!(version = names.content.table.version.0, altered, "names served");
        *self.names.lock() = Some(names);
        Ok(true)
    }

    async fn serve_anew(&self, names: Names) -> Names {
        let (zone, names) = blocking(move || {
            (Zone::new(&names.content.table, &names.content.sources, rand::random()), names)
        })
        .await;
        let before = self.responder.serve_zone(zone);
        blocking(move || drop(before)).await;
        names
    }

    /// Gives another process what we listen on, and ends once that one does. If it does not, nothing has happened.
    async fn hand_over(&self, link: Link) -> io::Result<()> {
        self.leaving.store(true, Ordering::Release);
        // What this one would still acknowledge, the other would not have.
        self.visit.lock().cancel();
        // One of an older build knows nothing of differences. What is written whole is no longer what they start from.
        self.names.lock().take();
        if let Err(error) = self.held.join_names() {
            tracing::warn!(%error, "names are not where the process after this one finds them");
        }
        let ended = self.give(link).await;
        self.leaving.store(false, Ordering::Release);
        self.visited.store(false, Ordering::Release);
        ended
    }

    async fn give(&self, mut link: Link) -> io::Result<()> {
        let (addresses, files) = self.responder.sockets()?;
        link.write(&[&serde_json::to_vec(&Say::Sockets(addresses))?]).await?;
        link.send_files(&files.iter().map(AsFd::as_fd).collect::<Vec<_>>()).await?;
        if let Ask::Took = serde_json::from_slice(&link.read().await?)? {
            self.over.cancel();
            // Open for as long as we may still answer: the other one waits for its end.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn report(&self) -> Report {
        Report { problems: self.responder.problems(), counters: self.responder.counters() }
    }
}

fn inode(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    (file.dev(), file.ino())
}

/// Whether the address is one of this machine's.
fn is_here(address: SocketAddr) -> bool {
    UdpSocket::bind((address.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wharf_model::{DnsTable, NetworkId, Revision};

    use super::*;
    use crate::dns::Sources;

    fn table(version: u64) -> DnsTable {
        let mut table = DnsTable { version: Revision(version), ..DnsTable::default() };
        let names = table.networks.entry(NetworkId::from_parts(1, [1; 10])).or_default();
        let last = u8::try_from(version).unwrap();
        names.extend([("db".to_owned(), vec![]), ("web".to_owned(), vec![Ipv4Addr::new(10, 0, 0, last)])]);
        table
    }

    fn difference(old: u64, new: u64) -> Vec<u8> {
        let sources = Sources::new();
        let difference = Difference::between((&table(old), &sources), (&table(new), &sources)).unwrap();
        serde_json::to_vec(&difference).unwrap()
    }

    #[tokio::test]
    async fn a_difference_counts_only_for_the_names_that_it_starts_from() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::new(&Shutdown::new());
        let responder = Responder::new(Upstreams::Fixed(Vec::new()), &tasks);
        let options = ProcessOptions { folder: folder.path().to_owned() };
        let process = Process::new(options, responder).unwrap();
        let version = || process.responder.version().map(|version| version.0);

        let whole = Content::write(&table(1), &Sources::new()).unwrap();
        let base = Checksum::of(&whole);
        let second = difference(1, 2);
        assert!(!process.change_names(base, &second).await.unwrap(), "it was told nothing yet");
        process.serve_names(whole.clone()).await.unwrap();
        assert!(!process.change_names(Checksum::of(b"else"), &second).await.unwrap());
        assert_eq!(version(), Some(1));
        assert!(process.change_names(base, &second).await.unwrap());
        assert!(
            !process.change_names(base, &difference(1, 3)).await.unwrap(),
            "these are not served any more"
        );
        assert_eq!(version(), Some(2));
        assert!(process.change_names(base.then(&second), &difference(2, 3)).await.unwrap());
        assert_eq!(version(), Some(3));
        assert_eq!(process.held.names().unwrap().table, table(3), "it is kept before it is acknowledged");

        // One that does not fit leaves what is served as it is, and what it starts from is unknown until all is told again.
        process.serve_names(whole).await.unwrap();
        let misfit =
            br#"{"table":{"part":{"networks":{"part":{"gone":["net_00000000000000000000000000"]}}}}}"#;
        assert!(!matches!(process.change_names(base, misfit).await, Ok(true)));
        assert!(!process.change_names(base, &second).await.unwrap());
        assert_eq!((version(), process.held.names().unwrap().table), (Some(1), table(1)));
    }
}
