//! Owns every asynchronous task of a process: its name, its span, its handle and its end.
//!
//! - A task is in the list from before it runs until after it has been dropped, however it ends.
//! - An essential task that ends before it was asked to, fails or panics asks the whole process to
//!   stop, and the first such [`Failure`] is remembered.
//! - After [`Tasks::shutdown`] has returned, nothing of the group starts any more; what could not be
//!   ended is in its answer by name.

use std::{
    any::Any,
    collections::BTreeMap,
    error::Error,
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{errors, shutdown::Shutdown};

/// How long an aborted task has to let go; it takes one poll, unless it blocks its thread.
const LET_GO: Duration = Duration::from_secs(1);

type AnyError = Box<dyn Error + Send + Sync>;

/// A group of tasks with one owner. Clones are the same group, so a component can spawn its own.
#[derive(Clone)]
pub struct Tasks {
    group: Arc<Group>,
}

struct Group {
    shutdown: Shutdown,
    stop: CancellationToken,
    state: Mutex<State>,
    /// How many tasks there are; changed together with `state`.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    last_id: u64,
    running: BTreeMap<u64, Entry>,
    failure: Option<Failure>,
    /// Set when the grace period is over: what is spawned from then on is aborted at once.
    closed: bool,
}

struct Entry {
    name: String,
    /// Absent for the moment between being listed and being spawned.
    abort: Option<AbortHandle>,
}

/// Why a process is not healthy: what became of one of its essential tasks.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// It returned although nobody asked it to.
    #[error("the essential task `{task}` ended although nothing asked it to")]
    EndedEarly {
        /// The task's name.
        task: String,
    },
    /// It returned an error.
    #[error("the essential task `{task}` failed")]
    Failed {
        /// The task's name.
        task: String,
        /// What it returned.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// It panicked.
    #[error("the essential task `{task}` panicked: {message}")]
    Panicked {
        /// The task's name.
        task: String,
        /// What the panic said.
        message: String,
    },
}

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoResult {
    /// It panicked.
    #[error("the task `{task}` panicked: {message}")]
    Panicked {
        /// The task's name.
        task: String,
        /// What the panic said.
        message: String,
    },
    /// It was aborted, or its runtime ended.
    #[error("the task `{task}` was aborted")]
    Aborted {
        /// The task's name.
        task: String,
    },
}

/// What [`Tasks::shutdown`] found.
#[derive(Debug, Clone)]
#[must_use = "says which tasks did not stop and whether one had failed"]
pub struct Stopped {
    /// The names of the tasks that were still running when the grace period ended. They were aborted.
    pub aborted: Vec<String>,
    /// The first failure of an essential task, before or during the shutdown.
    pub failure: Option<Failure>,
}

/// A task that was spawned, to wait for its result. Dropping it changes nothing: the group owns the task.
#[derive(Debug)]
pub struct Task<T> {
    name: String,
    handle: JoinHandle<Result<T, String>>,
}

impl Tasks {
    /// A group that is asked to stop as soon as the process is.
    #[must_use]
    pub fn new(shutdown: &Shutdown) -> Self {
        Self::with(shutdown, shutdown.token())
    }

    /// A group that goes on when the process is asked to stop, until its own [`Tasks::shutdown`]: for
    /// what has to outlive others, in the order in which `main` shuts groups down.
    #[must_use]
    pub fn staged(shutdown: &Shutdown) -> Self {
        Self::with(shutdown, CancellationToken::new())
    }

    fn with(shutdown: &Shutdown, stop: CancellationToken) -> Self {
        let (shutdown, state) = (shutdown.clone(), Mutex::default());
        Self { group: Arc::new(Group { shutdown, stop, state, count: watch::Sender::new(0) }) }
    }

    /// Cancelled when the tasks of this group shall stop. For `run(self, shutdown)` of a component.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.group.stop.child_token()
    }

    /// The process's shutdown, which an essential task of this group may cause.
    #[must_use]
    pub fn process(&self) -> &Shutdown {
        &self.group.shutdown
    }

    /// Starts a task whose end, whatever it is, concerns only those who wait for it. A panic is logged.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        let listed = self.list(name.into());
        let (id, name) = (listed.id, listed.name.clone());
        let span = tracing::error_span!("task", name = %name);
        let handle = spawn_on_runtime(
            async move {
                let outcome = AssertUnwindSafe(future).catch_unwind().await;
                outcome.map_err(|panic| listed.log_panic(&*panic))
            }
            .instrument(span),
        );
        self.attach(id, handle.abort_handle());
        Task { name, handle }
    }

    /// Starts a task the process cannot do without: it runs until [`Tasks::token`] is cancelled, and if it
    /// ends before that, fails or panics, the whole process is asked to stop.
    pub fn essential<E: Into<AnyError>>(
        &self,
        name: impl Into<String>,
        future: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let listed = self.list(name.into());
        let id = listed.id;
        let span = tracing::error_span!("task", name = %listed.name);
        let handle = spawn_on_runtime(
            async move {
                let outcome = AssertUnwindSafe(future).catch_unwind().await;
                if let Some(failure) = listed.failure(outcome.map(|end| end.map_err(Into::into))) {
                    listed.group.fail(failure);
                }
            }
            .instrument(span),
        );
        self.attach(id, handle.abort_handle());
    }

    /// Runs blocking work on a thread for it. It cannot be aborted once it has begun: a shutdown waits for
    /// it through the grace period and then names it.
    pub fn spawn_blocking<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let listed = self.list(name.into());
        let (id, name) = (listed.id, listed.name.clone());
        let span = tracing::error_span!("task", name = %name);
        let handle = tokio::task::spawn_blocking(move || {
            let _entered = span.entered();
            std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|panic| listed.log_panic(&*panic))
        });
        self.attach(id, handle.abort_handle());
        Task { name, handle }
    }

    /// The names of the tasks that are running, oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.group.state.lock().running.values().map(|entry| entry.name.clone()).collect()
    }

    /// The first failure of an essential task so far.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.group.state.lock().failure.clone()
    }

    /// Asks all tasks of the group to stop, waits for them up to `grace` (or until the process is asked to
    /// stop at once), then aborts the rest and names them.
    pub async fn shutdown(self, grace: Duration) -> Stopped {
        self.group.stop.cancel();
        tokio::select! {
            // Cancel-safe: waits for a number.
            _ = timeout(grace, self.group.ended()) => {}
            // Cancel-safe: waits for a flag.
            () = self.group.shutdown.immediate() => {}
        }
        let aborted = self.group.abort_all();
        if !aborted.is_empty() {
            tracing::warn!(tasks = ?aborted, "tasks did not stop in time");
            let _ = timeout(LET_GO, self.group.ended()).await;
        }
        Stopped { aborted, failure: self.failure() }
    }

    /// Drops every task of the group where it stands, and whatever it spawns from now on, as the sudden end of a process does: nothing is
    /// asked to stop, and nobody waits. For simulations.
    pub fn abort(&self) {
        self.group.abort_all();
    }

    fn list(&self, name: String) -> Listed {
        let mut state = self.group.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.running.insert(id, Entry { name: name.clone(), abort: None });
        self.group.count.send_replace(state.running.len());
        drop(state);
        Listed { group: Arc::clone(&self.group), id, name }
    }

    fn attach(&self, id: u64, abort: AbortHandle) {
        let mut state = self.group.state.lock();
        if state.closed {
            drop(state);
            abort.abort();
        } else if let Some(entry) = state.running.get_mut(&id) {
            entry.abort = Some(abort);
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Group {
    fn fail(&self, failure: Failure) {
        tracing::error!(error = errors::chain(&failure), "essential task failed");
        self.state.lock().failure.get_or_insert(failure);
        self.shutdown.request();
    }

    /// Returns when no task is left. Cancel-safe.
    async fn ended(&self) {
        let mut count = self.count.subscribe();
        // The sender is in `self`, so it cannot be gone.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    fn abort_all(&self) -> Vec<String> {
        let (names, handles): (Vec<_>, Vec<_>) = {
            let mut state = self.state.lock();
            state.closed = true;
            state.running.values().map(|entry| (entry.name.clone(), entry.abort.clone())).unzip()
        };
        // Outside the lock: an abort may drop the task on this thread, and with it its place in the list.
        handles.into_iter().flatten().for_each(|handle| handle.abort());
        names
    }
}

/// A task's place in the list; gives it up when the task is dropped, however it ended.
struct Listed {
    group: Arc<Group>,
    id: u64,
    name: String,
}

impl Listed {
    fn failure(&self, outcome: std::thread::Result<Result<(), AnyError>>) -> Option<Failure> {
        let task = self.name.clone();
        match outcome {
            Ok(Ok(())) if self.group.stop.is_cancelled() || self.group.shutdown.is_requested() => None,
            Ok(Ok(())) => Some(Failure::EndedEarly { task }),
            Ok(Err(error)) => Some(Failure::Failed { task, source: error.into() }),
            Err(panic) => Some(Failure::Panicked { task, message: panic_message(&*panic) }),
        }
    }

    fn log_panic(&self, panic: &(dyn Any + Send)) -> String {
        let message = panic_message(panic);
        tracing::error!(task = self.name, message, "task panicked");
        message
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut state = self.group.state.lock();
        state.running.remove(&self.id);
        self.group.count.send_replace(state.running.len());
    }
}

impl<T> Task<T> {
    /// The name it was spawned with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the task at its next `.await`; blocking work only if it has not begun.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, NoResult>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.handle.poll_unpin(context).map(|outcome| match outcome {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(message)) => Err(NoResult::Panicked { task: self.name.clone(), message }),
            Err(_aborted) => Err(NoResult::Aborted { task: self.name.clone() }),
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "this module is what spawns, so that nothing else does")]
fn spawn_on_runtime<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(future)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, io};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(SOON, future).await.expect("it happens within the deadline")
    }

    async fn until(token: CancellationToken) -> Result<(), Infallible> {
        token.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn aborted_tasks_are_dropped_without_having_been_asked_and_later_ones_never_begin() {
        let tasks = Tasks::new(&Shutdown::new());
        let stop = tasks.token();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let waiting = tasks.spawn("waiting", async move {
            let _held = sender;
            std::future::pending::<()>().await;
        });
        tasks.abort();
        assert!(receiver.await.is_err(), "what it held is dropped");
        assert_eq!(waiting.await, Err(NoResult::Aborted { task: "waiting".into() }));
        assert!(!stop.is_cancelled());
        let late = tasks.spawn("late", async {});
        assert_eq!(late.await, Err(NoResult::Aborted { task: "late".into() }));
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_tasks_that_stop_when_asked() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        tasks.essential("controllers", until(tasks.token()));
        tasks.spawn("session", until(tasks.token()));
        assert_eq!(tasks.running(), ["controllers", "session"]);
        let stopped = within(tasks.clone().shutdown(SOON * 100)).await;
        assert!(stopped.aborted.is_empty() && stopped.failure.is_none(), "{stopped:?}");
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_do_not_stop_are_aborted_and_named() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let stubborn = tasks.spawn("stubborn", pending::<()>());
        tasks.essential("willing", until(tasks.token()));
        let stopped = tasks.clone().shutdown(Duration::from_mins(1)).await;
        assert_eq!(stopped.aborted, ["stubborn"]);
        assert_eq!(stubborn.await, Err(NoResult::Aborted { task: "stubborn".to_owned() }));
        assert!(tasks.running().is_empty());

        let late = tasks.spawn("late", pending::<()>());
        let late = within(late).await;
        assert_eq!(late, Err(NoResult::Aborted { task: "late".to_owned() }), "nothing starts after the end");
    }

    #[tokio::test]
    async fn a_second_request_ends_the_grace_period() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        tasks.spawn("stubborn", pending::<()>());
        shutdown.request_immediate();
        let stopped = within(tasks.shutdown(Duration::from_hours(1))).await;
        assert_eq!(stopped.aborted, ["stubborn"]);
    }

    #[tokio::test]
    async fn an_essential_task_that_ends_early_stops_the_process() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        tasks.essential("listener", async { Ok::<_, Infallible>(()) });
        within(shutdown.requested()).await;
        let stopped = within(tasks.shutdown(SOON)).await;
        let failure = stopped.failure.expect("it is remembered");
        assert_eq!(failure.to_string(), "the essential task `listener` ended although nothing asked it to");
    }

    #[tokio::test]
    async fn an_essential_task_that_fails_says_why_and_the_first_one_is_remembered() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let token = tasks.token();
        tasks.essential("first", async { Err(io::Error::other("no more files")) });
        tasks.essential("second", async move {
            token.cancelled().await;
            Err(io::Error::other("not the cause"))
        });
        within(shutdown.requested()).await;
        let failure = within(tasks.shutdown(SOON)).await.failure.expect("it is remembered");
        assert_eq!(errors::chain(&failure), "the essential task `first` failed: no more files");
    }

    #[tokio::test]
    async fn a_panic_of_an_essential_task_stops_the_process() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        tasks.essential("leader", async {
            if shutdown_is_far() {
                panic!("two leaders");
            }
            Ok::<_, Infallible>(())
        });
        within(shutdown.requested()).await;
        let failure = tasks.failure().expect("it is remembered");
        assert_eq!(failure.to_string(), "the essential task `leader` panicked: two leaders");
    }

    /// Keeps the compiler from seeing that what follows the panic is never reached.
    fn shutdown_is_far() -> bool {
        std::hint::black_box(true)
    }

    #[tokio::test]
    async fn a_panic_of_an_ordinary_task_concerns_only_its_waiter() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let panicked = tasks.spawn("request", async { panic!("odd input") });
        let outcome: Result<(), _> = within(panicked).await;
        let expected = NoResult::Panicked { task: "request".to_owned(), message: "odd input".to_owned() };
        assert_eq!(outcome, Err(expected));
        assert!(tasks.failure().is_none() && !shutdown.is_requested());
    }

    #[tokio::test]
    async fn blocking_work_answers_and_is_waited_for() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let (release, held) = std::sync::mpsc::channel();
        let work = tasks.spawn_blocking("checksum", move || held.recv().expect("a number comes"));
        assert_eq!(tasks.running(), ["checksum"]);
        release.send(7).unwrap();
        assert_eq!(within(work).await, Ok(7));
        assert!(within(tasks.shutdown(SOON)).await.aborted.is_empty());
    }

    #[tokio::test]
    async fn a_staged_group_outlives_the_request_to_stop() {
        let shutdown = Shutdown::new();
        let (first, last) = (Tasks::new(&shutdown), Tasks::staged(&shutdown));
        first.essential("accept", until(first.token()));
        last.essential("telemetry", until(last.token()));
        shutdown.request();
        assert!(within(first.shutdown(SOON)).await.aborted.is_empty());
        assert_eq!(last.running(), ["telemetry"]);
        let stopped = within(last.shutdown(SOON)).await;
        assert!(stopped.aborted.is_empty() && stopped.failure.is_none());
    }

    #[tokio::test]
    async fn a_component_spawns_its_own_children() {
        let shutdown = Shutdown::new();
        let tasks = Tasks::new(&shutdown);
        let inner = tasks.clone();
        let child = tasks.spawn("parent", async move { inner.spawn("child", async { 3 }).await });
        assert_eq!(within(child).await, Ok(Ok(3)));
    }
}
