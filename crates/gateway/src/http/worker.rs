//! Threads that serve requests, one for each processor: each has a runtime of its own, accepts from the sockets that all share, and keeps
//! what it accepted.
//!
//! - A worker's clock is a number that its sweep sets ten times a second while there is anything to watch over. Deadlines are compared with it,
//!   so that a request needs no timer; they are met within a tenth of a second.
//! - Whatever may be overdue has a [`Watch`]. The sweep only wakes its task, which looks for itself what is late.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use socket2::Socket;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, oneshot, watch},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use wharf_model::TaskId;
use wharf_process::Tasks;

use super::{
    HttpOptions, Moment, probe, serve,
    table::{Backend, Table},
};
use crate::{
    access_log::{AccessLog, Writer},
    draining::{Draining, InUse},
    entry::Entry,
};

/// How often a worker looks what is overdue.
const TICK: Duration = Duration::from_millis(100);
/// Every so many of these looks, it goes through idle connections to tasks.
const TICKS_TO_POOLS: u64 = 10;
/// After an error of accepting that may be lasting: no more files may be opened.
const PAUSE: Duration = Duration::from_millis(50);
const ORDERS: usize = 64;

/// What all workers of a gateway share.
pub(crate) struct Http {
    pub(crate) options: HttpOptions,
    pub(crate) entry: Entry,
    pub(crate) table: Arc<ArcSwap<Table>>,
    /// Tables that requests may still look at: no request shall have to take one apart.
    past: Mutex<Vec<Arc<Table>>>,
    /// Told of every new table, after it is there.
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) draining: Arc<Draining>,
    log: AccessLog,
    retiring: AtomicBool,
    stopping: AtomicBool,
    /// How often tasks that have something under way were found not to be heard, or to be gone: whoever waits for one is to look for itself.
    given_up: AtomicU64,
    workers: Mutex<Vec<Hand>>,
}

/// What a worker can be told.
enum Order {
    Listen(u16, Socket, oneshot::Sender<io::Result<()>>),
    /// Answered when it does not accept there any more.
    Leave(u16, oneshot::Sender<()>),
    Retire,
}

/// A worker, seen from outside.
struct Hand {
    orders: mpsc::Sender<Order>,
    /// Ends its thread at once.
    _kill: DropGuard,
}

impl Http {
    pub(crate) fn new(options: HttpOptions, draining: Arc<Draining>, log: AccessLog) -> Self {
        Self {
            options,
            entry: Entry::new(),
            table: Arc::default(),
            past: Mutex::default(),
            changed: watch::Sender::new(0),
            draining,
            log,
            retiring: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            given_up: AtomicU64::new(0),
            workers: Mutex::default(),
        }
    }

    /// How many workers there are or will be.
    pub(crate) fn workers(&self) -> usize {
        match self.options.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            some => some,
        }
    }

    /// Whether each connection shall end with its next answer.
    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    /// Whether connections on which nothing is under way shall end now, as nobody takes over.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Serves this table: when it returns, no lease begins at an endpoint that it does not have.
    pub(crate) fn serve(&self, table: Table) {
        let table = Arc::new(table);
        let before = self.table.swap(Arc::clone(&table));
        if table.supersede(&before) {
            self.have_look();
        }
        let stays: HashSet<*const Backend> = table.endpoints().map(Arc::as_ptr).collect();
        for gone in before.endpoints().filter(|backend| !stays.contains(&Arc::as_ptr(backend))) {
            gone.leave(&self.draining);
        }
        self.changed.send_modify(|number| *number += 1);
        let mut past = self.past.lock();
        past.push(before);
        past.retain(|table| Arc::strong_count(table) > 1);
    }

    /// Endpoints with something under way are [gone](Backend::is_gone): whoever waits for one looks, within a tenth of a second.
    pub(crate) fn have_look(&self) {
        self.given_up.fetch_add(1, Ordering::SeqCst);
    }

    /// Starts the workers, if they do not run yet. Each belongs to `tasks`: when these are asked to stop it accepts no more, and its
    /// connections have the group's grace period.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be had.
    fn start(self: &Arc<Self>, tasks: &Tasks) -> io::Result<()> {
        let mut workers = self.workers.lock();
        if workers.is_empty() {
            tasks.spawn("gateway probes", probe::run(Arc::clone(&self.table), tasks.token()));
        }
        while workers.len() < self.workers() {
            let number = workers.len();
            workers.push(self.start_one(number, tasks)?);
        }
        Ok(())
    }

    fn start_one(self: &Arc<Self>, number: usize, tasks: &Tasks) -> io::Result<Hand> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, received) = mpsc::channel(ORDERS);
        let (over, ended) = oneshot::channel::<()>();
        let kill = CancellationToken::new();
        let worker = Arc::new(Worker::new(number, Arc::clone(self)));
        let (stop, killed) = (tasks.token(), kill.clone());
        thread::Builder::new().name(format!("gateway-{number}")).spawn(move || {
            runtime.block_on(killed.run_until_cancelled(worker.run(received, stop)));
            // Connections that are still there end with their tasks; nothing of theirs blocks.
            runtime.shutdown_background();
            drop(over);
        })?;
        let guard = kill.clone().drop_guard();
        tasks.spawn(format!("gateway worker {number}"), async move {
            // Dropped when the grace period is over: then the thread ends at once.
            let _guard = guard;
            let _ = ended.await;
        });
        Ok(Hand { orders, _kill: kill.drop_guard() })
    }

    /// Has all workers accept from this socket.
    ///
    /// # Errors
    /// In words, if one of them cannot.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        port: u16,
        socket: &Socket,
        tasks: &Tasks,
    ) -> Result<(), String> {
        let problem = |error: io::Error| format!("port {port} cannot be served: {error}");
        self.start(tasks).map_err(problem)?;
        let orders: Vec<_> = self.workers.lock().iter().map(|hand| hand.orders.clone()).collect();
        for worker in orders {
            let (answer, done) = oneshot::channel();
            let order = Order::Listen(port, socket.try_clone().map_err(problem)?, answer);
            let gone = || problem(io::Error::other("the gateway is being stopped"));
            worker.send(order).await.map_err(|_| gone())?;
            done.await.map_err(|_| gone())?.map_err(problem)?;
        }
        Ok(())
    }

    /// Returns when no worker accepts at this port any more.
    pub(crate) async fn leave(&self, port: u16) {
        let orders: Vec<_> = self.workers.lock().iter().map(|hand| hand.orders.clone()).collect();
        for worker in orders {
            let (answer, done) = oneshot::channel();
            if worker.send(Order::Leave(port, answer)).await.is_ok() {
                let _ = done.await;
            }
        }
    }

    /// Has every connection end with its next answer. Nothing is accepted any more when this returns, if all ports were left before.
    pub(crate) async fn retire(&self) {
        self.retiring.store(true, Ordering::SeqCst);
        let orders: Vec<_> = self.workers.lock().iter().map(|hand| hand.orders.clone()).collect();
        for worker in orders {
            let _ = worker.send(Order::Retire).await;
        }
    }
}

/// One of the threads.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) http: Arc<Http>,
    pub(crate) log: Writer,
    clock: AtomicU64,
    watches: Mutex<Vec<Arc<Watch>>>,
    /// There is something to watch over.
    begun: Notify,
}

impl Worker {
    fn new(number: usize, http: Arc<Http>) -> Self {
        let (clock, log) = (AtomicU64::new(Moment::now().0), http.log.writer());
        Self { number, http, log, clock, watches: Mutex::default(), begun: Notify::new() }
    }

    /// The time of the last sweep.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.clock.load(Ordering::Relaxed))
    }

    pub(crate) fn options(&self) -> &HttpOptions {
        &self.http.options
    }

    /// Runs something on this worker that nobody waits for; it ends with the worker. To be called on the worker only.
    #[expect(
        clippy::disallowed_methods,
        reason = "connections and streams are too many to be named; the worker owns and ends them"
    )]
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(future);
    }

    /// Wakes the task that last said so when it is late.
    pub(crate) fn watch(self: &Arc<Self>, due: Moment) -> Watched {
        let watch = Arc::new(Watch::until(due));
        let mut watches = self.watches.lock();
        if watches.is_empty() {
            self.clock.store(Moment::now().0, Ordering::Relaxed);
            self.begun.notify_one();
        }
        watch.place.store(watches.len(), Ordering::Relaxed);
        watches.push(Arc::clone(&watch));
        drop(watches);
        Watched { watch, worker: Arc::clone(self) }
    }

    /// Accepts what it is told to until `stop`, and returns when all its connections have ended.
    async fn run(self: Arc<Self>, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let sweep = Arc::clone(&self);
        self.spawn(async move { sweep.sweep().await });
        let mut ports: BTreeMap<u16, (CancellationToken, oneshot::Receiver<()>)> = BTreeMap::new();
        loop {
            let order = tokio::select! {
                // Cancel-safe: it is the end.
                () = stop.cancelled() => break,
                // Cancel-safe by its own words.
                order = orders.recv() => order,
            };
            match order {
                None => break,
                Some(Order::Listen(port, socket, answer)) => {
                    let opened = TcpListener::from_std(socket.into()).map(|listener| {
                        let (leave, (left, done)) = (CancellationToken::new(), oneshot::channel());
                        let (worker, until) = (Arc::clone(&self), leave.clone());
                        self.spawn(async move {
                            until.run_until_cancelled(worker.accept(&listener, port)).await;
                            drop(listener);
                            drop(left);
                        });
                        ports.insert(port, (leave, done));
                    });
                    let _ = answer.send(opened);
                }
                Some(Order::Leave(port, answer)) => {
                    if let Some((leave, done)) = ports.remove(&port) {
                        leave.cancel();
                        let _ = done.await;
                    }
                    let _ = answer.send(());
                }
                Some(Order::Retire) => self.wake_all(),
            }
        }
        self.http.retiring.store(true, Ordering::SeqCst);
        self.http.stopping.store(true, Ordering::SeqCst);
        for (leave, done) in std::mem::take(&mut ports).into_values() {
            leave.cancel();
            let _ = done.await;
        }
        self.wake_all();
        while !self.watches.lock().is_empty() {
            tokio::time::sleep(TICK / 2).await;
        }
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, port: u16) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.take(stream, from, port),
                Err(error) => {
                    tracing::debug!(%error, "connection not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn take(self: &Arc<Self>, stream: TcpStream, from: SocketAddr, port: u16) {
        // What is small and urgent is not kept back for more.
        let _ = stream.set_nodelay(true);
        self.spawn(serve::accepted(Arc::clone(self), stream, from, port));
    }

    /// Keeps the clock, and wakes what is late, while there is anything to wake.
    async fn sweep(&self) {
        let mut given_up = 0;
        for round in 0_u64.. {
            tokio::time::sleep(TICK).await;
            let now = Moment::now();
            self.clock.store(now.0, Ordering::Relaxed);
            let latest = self.http.given_up.load(Ordering::SeqCst);
            if std::mem::replace(&mut given_up, latest) != latest {
                self.wake_all();
            }
            let (late, is_empty) = {
                let watches = self.watches.lock();
                let late = watches.iter().filter(|watch| watch.is_due(now)).map(Arc::clone);
                (late.collect::<Vec<_>>(), watches.is_empty())
            };
            late.iter().for_each(|watch| watch.wake());
            if is_empty || round % TICKS_TO_POOLS == 0 {
                let table = self.http.table.load_full();
                let idle: usize =
                    table.endpoints().map(|backend| backend.pools.sweep(self.number, now)).sum();
                if self.number == 0 {
                    table.maintain(now);
                }
                if is_empty && idle == 0 {
                    self.begun.notified().await;
                }
            }
        }
    }

    fn wake_all(&self) {
        let all: Vec<_> = self.watches.lock().iter().map(Arc::clone).collect();
        all.iter().for_each(|watch| watch.wake());
    }
}

impl InUse for Backend {
    fn task(&self) -> TaskId {
        self.endpoint.task
    }

    fn under_way(&self) -> u64 {
        self.active()
    }

    fn give_up(&self) {
        self.go();
    }
}

/// Something that may become overdue. Only its own task changes it.
#[derive(Default)]
pub(crate) struct Watch {
    waker: AtomicWaker,
    due: AtomicU64,
    /// In the worker's list; kept under its lock.
    place: AtomicUsize,
}

impl Watch {
    fn until(due: Moment) -> Self {
        Self { due: AtomicU64::new(due.0), ..Self::default() }
    }

    /// Whom to wake.
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn set(&self, due: Moment) {
        self.due.store(due.0, Ordering::Relaxed);
    }

    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.due.load(Ordering::Relaxed) <= now.0
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }
}

/// A watch in its worker's list, until it is dropped.
pub(crate) struct Watched {
    watch: Arc<Watch>,
    worker: Arc<Worker>,
}

impl std::ops::Deref for Watched {
    type Target = Arc<Watch>;
    fn deref(&self) -> &Arc<Watch> {
        &self.watch
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watches = self.worker.watches.lock();
        let place = self.watch.place.load(Ordering::Relaxed);
        watches.swap_remove(place);
        if let Some(moved) = watches.get(place) {
            moved.place.store(place, Ordering::Relaxed);
        }
    }
}
