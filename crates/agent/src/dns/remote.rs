//! The agent's side of the DNS process: starts it, or finds it running, and keeps it at what is wanted.
//!
//! - Whoever connects tells all: where to answer, and which names. What changes afterwards is told as it changes, one thing at a time, and
//!   of names the difference; what is overtaken meanwhile is not told at all.
//! - Names are told whole again when the process does not have what a difference starts from, and once differences have come to as much as the
//!   whole: so what they are kept in stays as small.
//! - A process that does not acknowledge in time is ended and started again. One that ends is started again.
//! - The agent's end, however it comes, is not the process's.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use wharf_api::transport::Sent;
use wharf_model::{DnsTable, NetworkId, Revision};
use wharf_process::{
    Backoff, Tasks,
    detached::{self, Link, LinkReader, LinkWriter, Program},
};

use super::{
    DnsCounters, Listen, Sources, Upstreams,
    process::ProcessOptions,
    protocol::{Ask, Content, Difference, Report, Say, Settings},
};

/// How long the process has to acknowledge: a large table on a busy machine, and the end of the process before it.
const ACKNOWLEDGED: Duration = Duration::from_secs(20);
/// How long [`DnsProcess::publish`] waits for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is asked how it is.
const REPORT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A process that runs that long was no failure to start.
const STEADY: Duration = Duration::from_secs(10);

/// The DNS process with its files in `folder`; `arguments` make the running executable that process.
#[must_use]
pub fn program(folder: &Path, arguments: Vec<std::ffi::OsString>) -> Program {
    let options = ProcessOptions { folder: folder.to_owned() };
    Program::own(arguments, options.socket())
}

/// The DNS process of a node. Clones are the same one.
#[derive(Clone)]
pub struct DnsProcess {
    shared: Arc<Shared>,
}

struct Shared {
    program: Program,
    upstreams: Upstreams,
    wanted: watch::Sender<Wanted>,
    /// The last names that were acknowledged: their number, and their version.
    served: watch::Sender<(u64, Option<Revision>)>,
    report: watch::Sender<Report>,
    /// Why there is no process.
    absent: Mutex<Option<String>>,
    starts: AtomicU64,
}

/// What the process is to be told. Things with a number have changed if it has.
#[derive(Default, Clone)]
struct Wanted {
    settings: Option<Settings>,
    names: Option<Names>,
    /// Reports that were asked for.
    reports: u64,
}

#[derive(Clone)]
struct Names {
    number: u64,
    table: Arc<DnsTable>,
    sources: Arc<Sources>,
}

/// What a process was told.
#[derive(Default)]
struct Told {
    settings: Option<Settings>,
    /// The last number of names.
    number: u64,
    names: Option<ToldNames>,
    reports: u64,
}

/// Names that a process has acknowledged.
struct ToldNames {
    names: Names,
    /// How.
    sent: Sent,
}

/// How names are told.
struct Telling {
    ask: Ask,
    content: Vec<u8>,
    told: ToldNames,
}

impl Telling {
    /// The whole of them, or what is different from those that were told. Nothing if there is nothing.
    fn of(names: &Names, told: Option<&ToldNames>) -> serde_json::Result<Option<Self>> {
        let number = names.number;
        if let Some(ToldNames { names: before, sent }) = told {
            let (old, new) = ((&*before.table, &*before.sources), (&*names.table, &*names.sources));
            let Some(difference) = Difference::between(old, new) else { return Ok(None) };
            let content = serde_json::to_vec(&difference)?;
            let base = sent.sum();
            if let Some(sent) = sent.then(&content) {
                let told = ToldNames { names: names.clone(), sent };
                return Ok(Some(Self { ask: Ask::Change { number, base }, content, told }));
            }
        }
        let content = Content::write(&names.table, &names.sources)?;
        let told = ToldNames { names: names.clone(), sent: Sent::whole(&content) };
        Ok(Some(Self { ask: Ask::Names { number }, content, told }))
    }
}

impl DnsProcess {
    /// Starts the process, or finds it running, and looks after it until `tasks` end. It goes on then.
    #[must_use]
    pub fn start(program: Program, upstreams: Upstreams, tasks: &Tasks) -> Self {
        let shared = Arc::new(Shared {
            program,
            upstreams,
            wanted: watch::Sender::default(),
            served: watch::Sender::default(),
            report: watch::Sender::default(),
            absent: Mutex::default(),
            starts: AtomicU64::new(0),
        });
        let (running, stop) = (Arc::clone(&shared), tasks.token());
        tasks.spawn("dns process", async move { stop.run_until_cancelled(running.run()).await });
        Self { shared }
    }

    /// Answers on exactly these networks from now on.
    pub fn listen(&self, networks: &BTreeMap<NetworkId, Listen>) {
        let upstreams = self.shared.upstreams.clone();
        let troubled = !self.shared.report.borrow().problems.is_empty();
        self.shared.wanted.send_if_modified(|wanted| {
            if wanted.settings.as_ref().is_some_and(|settings| settings.networks == *networks) {
                // It tries again by itself; whether it succeeded is worth knowing.
                wanted.reports += u64::from(troubled);
                return troubled;
            }
            wanted.settings = Some(Settings { networks: networks.clone(), upstreams });
            true
        });
    }

    /// Serves these names from now on. Whether they and no older ones are served already: if not, they will be, and
    /// [`DnsProcess::version`] says when. Called again, it goes on waiting.
    pub async fn publish(&self, table: impl Into<Arc<DnsTable>>, sources: &Sources) -> bool {
        let (mut number, table) = (0, table.into());
        self.shared.wanted.send_modify(|wanted| {
            let before = wanted.names.as_ref();
            let same = before.map(|names| &names.sources).filter(|known| ***known == *sources);
            let sources = same.map_or_else(|| Arc::new(sources.clone()), Arc::clone);
            number = before.map_or(1, |names| names.number + 1);
            wanted.names = Some(Names { number, table, sources });
        });
        let mut served = self.shared.served.subscribe();
        timeout(PATIENCE, served.wait_for(|(served, _)| *served >= number)).await.is_ok()
    }

    /// The version of the table that every answer comes from, as far as it was acknowledged; none before the first.
    #[must_use]
    pub fn version(&self) -> Option<Revision> {
        self.shared.served.borrow().1
    }

    /// Networks on which nothing is answered, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<_> = self.shared.absent.lock().iter().cloned().collect();
        problems.extend(self.shared.report.borrow().problems.iter().cloned());
        problems
    }

    /// What was asked so far, as the process says now; what it last said if it does not answer.
    pub async fn counters(&self) -> DnsCounters {
        let mut report = self.shared.report.subscribe();
        report.mark_unchanged();
        self.shared.wanted.send_modify(|wanted| wanted.reports += 1);
        let _ = timeout(PATIENCE, report.changed()).await;
        report.borrow().counters
    }

    /// How often a process was started.
    #[must_use]
    pub fn starts(&self) -> u64 {
        self.shared.starts.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn run(&self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let since = Instant::now();
            let error = match self.program.reach().await {
                Ok((link, started)) => {
                    if started {
                        self.starts.fetch_add(1, Ordering::Relaxed);
                    }
                    tracing::info!(pid = link.peer.pid, started, "connected to the DNS process");
                    *self.absent.lock() = None;
                    self.tell(link).await
                }
                Err(error) => error,
            };
            tracing::warn!(%error, "no connection to the DNS process");
            *self.absent.lock() =
                Some(format!("names are not kept up to date: no connection to the DNS process: {error}"));
            if since.elapsed() > STEADY {
                backoff.reset();
                // The first time without a pause: every millisecond is a question without an answer.
                continue;
            }
            let pause = backoff.next_delay(&mut rand::rng());
            sleep(pause).await;
        }
    }

    /// Tells the process what is wanted until it is gone; says how that showed.
    async fn tell(&self, link: Link) -> io::Error {
        let (mut reader, mut writer) = link.split();
        let mut wanted = self.wanted.subscribe();
        let mut told = Told::default();
        loop {
            let now = wanted.borrow_and_update().clone();
            match timeout(ACKNOWLEDGED, self.tell_next(&now, &mut told, &mut reader, &mut writer)).await {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return error,
                Err(_) => {
                    let _ = detached::evict(&self.program.socket).await;
                    return io::Error::other("it did not acknowledge in time, and was ended");
                }
            }
            tokio::select! {
                // Cancel-safe: it only waits.
                changed = wanted.changed() => if changed.is_err() { return io::Error::other("no longer wanted") },
                // It says nothing unasked: only its end is to be heard.
                end = reader.closed() => return end,
                () = sleep(REPORT) => told.reports = u64::MAX,
            }
        }
    }

    /// Tells one thing, and waits for the answer; whether there may be more to tell.
    async fn tell_next(
        &self,
        wanted: &Wanted,
        told: &mut Told,
        reader: &mut LinkReader,
        writer: &mut LinkWriter,
    ) -> io::Result<bool> {
        // Names first: a process that has none would deny nothing, and answer nothing either.
        if let Some(names) = wanted.names.as_ref().filter(|names| names.number != told.number) {
            return self.tell_names(names, told, reader, writer).await;
        }
        if let Some(settings) = &wanted.settings
            && told.settings.as_ref() != Some(settings)
        {
            writer.write(&[&serde_json::to_vec(&Ask::Settings(settings.clone()))?]).await?;
            told.settings = Some(settings.clone());
        } else if wanted.reports != told.reports {
            writer.write(&[&serde_json::to_vec(&Ask::Report)?]).await?;
            told.reports = wanted.reports;
        } else {
            return Ok(false);
        }
        match serde_json::from_slice(&reader.read().await?)? {
            Say::Report(report) => drop(self.report.send_replace(report)),
            said => return Err(io::Error::other(format!("it said {said:?}"))),
        }
        Ok(true)
    }

    /// Tells names, as [`Shared::tell_next`].
    async fn tell_names(
        &self,
        names: &Names,
        told: &mut Told,
        reader: &mut LinkReader,
        writer: &mut LinkWriter,
    ) -> io::Result<bool> {
        let number = names.number;
        if let Some(Telling { ask, content, told: now }) = Telling::of(names, told.names.as_ref())? {
            writer.write(&[&serde_json::to_vec(&ask)?]).await?;
            writer.write(&[&content]).await?;
            match serde_json::from_slice(&reader.read().await?)? {
                Say::Served { number: served } if served == number => told.names = Some(now),
                Say::Unknown { number: served } if served == number && told.names.is_some() => {
                    tracing::warn!(
                        "the DNS process does not have the names that a difference starts from; it is told all"
                    );
                    told.names = None;
                    return Ok(true);
                }
                said => return Err(io::Error::other(format!("it said {said:?}"))),
            }
        }
        told.number = number;
        self.served.send_replace((number, Some(names.table.version)));
        Ok(true)
    }
}
