//! Runs a service's hooks in its container: `post_start` before the task counts as running, `pre_stop` before it is asked
//! to stop.
//!
//! - The hooks of one moment run one after the other, and the first that fails is the last.
//! - A task whose `post_start` fails never runs: its container is stopped and the task has failed, with the hook's output.
//! - A stop is never taken back, so a `pre_stop` that fails or takes longer than the grace period is only told of.
//! - An agent that restarts in the middle runs the hooks of that moment again from the first.

use futures::StreamExt;
use tokio::time::timeout;
use wharf_model::{Hook, Millis, Phase, TaskAssignment};

use super::{Interrupted, Stumble, TaskLoop, Turn, last_lines};
use crate::runtime::{Container, ContainerId, ExecRequest, Runtime, RuntimeError, spec::DEFAULT_GRACE};

/// Bytes kept of a hook's output: its end.
const OUTPUT: usize = 16 * 1024;
/// Characters shown of a hook's command.
const SHOWN: usize = 60;

/// Why a hook did not succeed.
enum Failure {
    /// The engine did not do its part, and may the next time.
    Engine(RuntimeError),
    /// The command did not: why, and its last lines.
    Command(String, Vec<String>),
}
impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        if error.is_temporary() { Self::Engine(error) } else { Self::Command(error.to_string(), Vec::new()) }
    }
}

impl TaskLoop {
    /// Runs what is to be run once the process runs; an answer means that the task does not come up by it.
    pub(super) async fn after_start(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
    ) -> Result<Option<Turn>, Stumble> {
        let hooks = &task.spec.container.post_start;
        for (index, hook) in hooks.iter().enumerate().skip(self.hooks_done) {
            let about = format!("`post_start` hook {} of {}, `{}`", index + 1, hooks.len(), shown(hook));
            self.enter(Phase::Starting, format!("running its {about}")).await;
            let runtime = std::sync::Arc::clone(&self.shared.runtime);
            match self.unless_changed(task, run(&*runtime, &container.id, hook)).await? {
                Ok(()) => self.hooks_done = index + 1,
                Err(Failure::Engine(error)) => return Err(error.into()),
                Err(Failure::Command(why, output)) => {
                    return self.fail_by_hook(task, container, &about, &why, output).await.map(Some);
                }
            }
        }
        Ok(None)
    }

    /// Ends a task whose hook has failed, unless its own process has ended and is the reason.
    async fn fail_by_hook(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
        about: &str,
        why: &str,
        output: Vec<String>,
    ) -> Result<Turn, Stumble> {
        let runtime = std::sync::Arc::clone(&self.shared.runtime);
        let now = runtime.inspect(&container.id).await?;
        if !now.is_some_and(|now| now.state.is_running()) {
            return Ok(Turn::Again);
        }
        self.say(&format!("its {about} failed; stopping"));
        let grace = task.spec.container.stop_grace_period.unwrap_or(DEFAULT_GRACE);
        tokio::select! {
            biased;
            // Cancel-safe: waits for a flag. The next agent finds the container running or ended, and decides again.
            () = self.shutdown.cancelled() => return Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Dropped by the arm above only.
            stopped = runtime.stop(&container.id, grace.duration()) => stopped?,
        }
        self.status.last_log = output;
        let hint = "what it printed stands in the task's last lines; run it by hand: `wharf exec`";
        self.fail(&format!("its {about} failed: {why}"), Some(hint.to_owned())).await;
        Ok(Turn::Again)
    }

    /// Runs what is to be run before the process is asked to stop, for at most the grace period.
    pub(super) async fn before_stop(
        &mut self,
        task: &TaskAssignment,
        container: &Container,
        grace: Millis,
    ) -> Result<(), Stumble> {
        let hooks = &task.spec.container.pre_stop;
        if hooks.is_empty() || self.pre_stopped.is_some() {
            return Ok(());
        }
        let all = if hooks.len() == 1 { "hook".to_owned() } else { format!("{} hooks", hooks.len()) };
        let message = format!("running its `pre_stop` {all} for at most {grace} before it is asked to stop");
        self.enter(Phase::Stopping, message).await;
        let runtime = std::sync::Arc::clone(&self.shared.runtime);
        let ran = tokio::select! {
            biased;
            // Cancel-safe: waits for a flag. The next agent runs the hooks again.
            () = self.shutdown.cancelled() => return Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Dropped by the arm above only; a command that is cut off ends with its container.
            ran = timeout(grace.duration(), run_all(&*runtime, &container.id, hooks)) => ran,
        };
        let remark = match ran {
            Ok(Ok(())) => String::new(),
            Ok(Err(text)) => format!("it was stopped although its {text}"),
            Err(_elapsed) => {
                format!("it was stopped although its `pre_stop` hooks had not ended after {grace}")
            }
        };
        if !remark.is_empty() {
            tracing::warn!(remark, "hooks before a stop");
        }
        self.pre_stopped = Some(remark);
        Ok(())
    }

    /// Waits for something that orders about other tasks do not cut short.
    async fn unless_changed<T>(
        &self,
        task: &TaskAssignment,
        doing: impl Future<Output = T>,
    ) -> Result<T, Stumble> {
        let mut orders = self.orders.clone();
        tokio::select! {
            biased;
            // Cancel-safe: waits for a flag.
            () = self.shutdown.cancelled() => Err(Stumble::Interrupted(Interrupted::Shutdown)),
            // Cancel-safe: the loop's own receiver still sees the change.
            changed = orders.wait_for(|new| new.forget || *new.task != *task) => {
                let cut = if changed.is_ok() { Interrupted::Orders } else { Interrupted::Shutdown };
                Err(Stumble::Interrupted(cut))
            }
            // Dropped by the arms above: the command goes on until its container ends.
            done = doing => Ok(done),
        }
    }
}

/// Runs hooks one after the other; what is wrong with the first that fails.
async fn run_all(runtime: &dyn Runtime, container: &ContainerId, hooks: &[Hook]) -> Result<(), String> {
    for hook in hooks {
        let failed = |why: &str, output: &[String]| {
            let printed = output.last().map_or(String::new(), |line| format!(": {line}"));
            format!("`pre_stop` hook `{}` failed: {why}{printed}", shown(hook))
        };
        match run(runtime, container, hook).await {
            Ok(()) => {}
            Err(Failure::Engine(error)) => return Err(failed(&error.to_string(), &[])),
            Err(Failure::Command(why, output)) => return Err(failed(&why, &output)),
        }
    }
    Ok(())
}

/// Runs one hook to its end.
async fn run(runtime: &dyn Runtime, container: &ContainerId, hook: &Hook) -> Result<(), Failure> {
    let Hook { command, user, privileged, working_dir, environment } = hook;
    let request = ExecRequest {
        command: command.clone(),
        user: user.clone(),
        privileged: *privileged,
        working_dir: working_dir.clone(),
        environment: environment.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        ..ExecRequest::default()
    };
    let mut session = runtime.exec(container, &request).await?;
    let mut output = Vec::new();
    while let Some(frame) = session.output.next().await {
        output.extend_from_slice(&frame?.bytes);
        let surplus = output.len().saturating_sub(OUTPUT);
        output.drain(..surplus);
    }
    match session.control.exit_code().await? {
        0 => Ok(()),
        code => Err(Failure::Command(format!("exit code {code}"), last_lines(&output))),
    }
}

/// A hook's command as people wrote it, or its beginning.
fn shown(hook: &Hook) -> String {
    let text = hook.command.join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
