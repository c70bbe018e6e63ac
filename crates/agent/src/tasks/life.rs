//! Whether the process of a task lives, as the kernel says.
//!
//! - What follows from its end does not wait for the engine, which may be busy or gone: names lead there no more on this node, servers
//!   hear that the task is not ready, and the task's loop looks again.
//! - Nothing is said of how it ended.

use std::{future::pending, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use wharf_model::{TaskId, Timestamp};

use super::Shared;
use crate::runtime::{Container, FirstProcess};

/// What is said of a task whose process has ended, until the engine says how.
pub(super) const ENDED: &str = "its process has ended; the engine has not said yet how";

/// Which run of a container: its process's number, and when it started.
type Run = (i64, Timestamp);

/// What is known of the process of one task.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// The process that is followed.
    process: watch::Sender<Option<(Run, Arc<FirstProcess>)>>,
    /// The run that has ended, if no later one is known.
    over: Mutex<Option<Run>>,
}

/// Who is told of an end.
pub(super) struct Ended<'a> {
    pub task: TaskId,
    pub shared: &'a Shared,
    pub nudge: &'a Notify,
}

impl Life {
    /// Whether the process is known to have ended, whatever the engine says.
    pub(super) fn is_over(&self) -> bool {
        self.over.lock().is_some()
    }

    /// The engine says that the task's container runs: its process is followed from now on. Whether it lives, as far as is known.
    pub(super) async fn attend(
        &self,
        task: TaskId,
        container: &Container,
        started_at: Timestamp,
        shared: &Shared,
    ) -> bool {
        let run = (container.pid, started_at);
        {
            let mut over = self.over.lock();
            if *over == Some(run) {
                return false;
            }
            if over.take().is_some() {
                shared.has_begun_again(task);
            }
        }
        let known = self.process.borrow().as_ref().map(|(run, _)| *run);
        if known != Some(run) {
            let found = shared.runtime.first_process(container).await.unwrap_or_else(|error| {
                // The engine tells of the end too, only later.
                tracing::debug!(%error, pid = container.pid, "a container's process cannot be followed");
                None
            });
            self.process.send_replace(found.map(|process| (run, Arc::new(process))));
        }
        true
    }

    /// Tells of the end of each process that is followed. Never ends.
    pub(super) async fn follow(&self, told: &Ended<'_>) {
        let mut processes = self.process.subscribe();
        loop {
            let followed = processes.borrow_and_update().clone();
            let end = async {
                match &followed {
                    Some((run, process)) => process.ended().await.map(|()| *run),
                    None => pending().await,
                }
            };
            tokio::select! {
                // Cancel-safe: a watch channel keeps its value. The sender is our own.
                _ = processes.changed() => {}
                // Cancel-safe: a process that has ended stays so.
                end = end => match end {
                    Ok(run) => {
                        *self.over.lock() = Some(run);
                        told.tell().await;
                        self.process.send_if_modified(|followed| {
                            followed.take_if(|(followed, _)| *followed == run).is_some()
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a container's process is followed no longer");
                        // Nothing can be waited for but another one.
                        let _ = processes.changed().await;
                    }
                },
            }
        }
    }
}

impl Ended<'_> {
    async fn tell(&self) {
        self.shared.has_ended(self.task);
        self.shared.reports.not_ready(self.task, ENDED);
        self.nudge.notify_one();
        tracing::info!("its process has ended");
        self.shared.plane.0.ended(self.task).await;
    }
}
