//! Carrying out a change of an app: plan, agreement, exactly that plan, and the way to its outcome.
//!
//! The cluster carries the change out whether or not anybody watches; what this does after a change has begun is watching.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    time::Duration,
};

use anyhow::{Result, bail};
use http::Method;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use wharf_api::{
    transport::{CallError, LineReader, empty},
    v1,
};
use wharf_model::{AppKey, Bytes, Phase};

use super::{client_name, ps, up};
use crate::{
    Exit,
    connect::{Cluster, app_path, is_not_found},
    hint,
    output::{Color, Format, Output, rough},
};

/// How often a plan that was overtaken is made anew, when nobody is asked.
const ATTEMPTS: usize = 5;
/// Between looks at an app that is busy.
const LOOK: Duration = Duration::from_millis(500);
/// Between attempts to reach a server again.
const REDIAL: Duration = Duration::from_secs(1);

/// A change of an app that somebody asked for.
pub(crate) struct Change {
    pub(crate) app: AppKey,
    pub(crate) action: v1::Action,
    pub(crate) yes: bool,
    pub(crate) dry_run: bool,
    pub(crate) detach: bool,
    pub(crate) busy: Busy,
    pub(crate) timeout: Duration,
    /// What the person is asked once the plan is shown.
    pub(crate) question: &'static str,
    /// What is said when there is nothing to do.
    pub(crate) nothing: &'static str,
    /// Of a release: what is remembered with it.
    pub(crate) note: Note,
}

/// What is remembered with a release.
#[derive(Default)]
pub(crate) struct Note {
    pub(crate) message: Option<String>,
    pub(crate) source: Option<v1::GitSource>,
}

/// What to do when another change of the app is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    Wait,
    Fail,
    Supersede,
}
impl Busy {
    pub(crate) const fn from_flags(no_wait: bool, supersede: bool) -> Self {
        match (no_wait, supersede) {
            (_, true) => Self::Supersede,
            (true, false) => Self::Fail,
            (false, false) => Self::Wait,
        }
    }
}

/// What `--format json` prints at the end.
#[derive(Serialize)]
struct Outcome<'a> {
    plan: &'a v1::Plan,
    /// `unchanged`, `planned`, `begun`, `done`, `failed` or `not_yet`.
    outcome: &'static str,
    generation: Option<u64>,
    release: Option<u64>,
    rollout: Option<v1::RolloutView>,
    urls: Vec<String>,
    /// The tasks that failed in it, with their last output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<v1::Task>,
}

pub(crate) async fn carry_out(cluster: &Cluster, change: &Change, out: &Output) -> Result<Exit> {
    carry_out_shown(cluster, change, None, out).await
}

/// As [`carry_out`]; of what was shown and agreed to before its images were built, nothing is asked again.
pub(crate) async fn carry_out_shown(
    cluster: &Cluster,
    change: &Change,
    mut shown: Option<v1::Plan>,
    out: &Output,
) -> Result<Exit> {
    let mut agreed = None::<String>;
    let mut attempts = 0;
    loop {
        attempts += 1;
        let plan = up::plan(cluster, &change.app, &change.action).await?;
        match shown.take() {
            Some(before) if covers(&before, &plan) => agreed = Some(plan.fingerprint.clone()),
            _ => up::show(&plan, out)?,
        }
        if !plan.refusals.is_empty() {
            print(out, &plan, "failed", None, None)?;
            return Ok(Exit::Failed);
        }
        if plan.is_noop() {
            return unchanged(cluster, change, &plan, out).await;
        }
        if change.dry_run {
            print(out, &plan, "planned", None, None)?;
            out.say("nothing was changed (`--dry-run`)");
            return Ok(Exit::NotYet);
        }
        let known = agreed.as_deref() == Some(plan.fingerprint.as_str());
        if !known && !up::agreed(change.yes, change.question)? {
            out.say("nothing was changed");
            return Ok(Exit::Failed);
        }
        agreed = Some(plan.fingerprint.clone());
        let wish = v1::ApplyRequest {
            action: change.action.clone(),
            fingerprint: plan.fingerprint.clone(),
            client: client_name(),
            supersede: change.busy == Busy::Supersede,
            message: change.note.message.clone(),
            source: change.note.source.clone(),
        };
        let path = app_path(&change.app, "/apply");
        match cluster.client.call_within::<v1::Applied>(Method::POST, &path, &wish, up::PLANNING).await {
            Ok(applied) => return begun(cluster, change, &plan, &applied, out).await,
            Err(error) => {
                let code = error.problem().map(|problem| problem.code);
                match code {
                    Some(v1::Code::Busy) if change.busy == Busy::Wait => {
                        wait_until_free(cluster, change, &error, out).await?;
                    }
                    Some(v1::Code::Moved) if attempts < ATTEMPTS => {
                        out.say("the app has changed since this was planned; here is the plan as of now");
                    }
                    _ => return Err(error.into()),
                }
            }
        }
    }
}

/// Whether a plan does nothing that an earlier one has not shown.
fn covers(before: &v1::Plan, plan: &v1::Plan) -> bool {
    let does = |operation: &&v1::Operation| operation.change != v1::Change::Keep;
    plan.refusals.is_empty()
        && plan.operations.iter().filter(does).all(|operation| {
            before.operations.iter().any(|other| {
                (other.change, &other.kind, &other.name)
                    == (operation.change, &operation.kind, &operation.name)
            })
        })
}

/// There is nothing to do; if a change is under way that got it there, its outcome is this one's.
async fn unchanged(cluster: &Cluster, change: &Change, plan: &v1::Plan, out: &Output) -> Result<Exit> {
    let status = match cluster.client.get::<v1::AppStatus>(&app_path(&change.app, "")).await {
        Ok(status) => Some(status),
        Err(error) if is_not_found(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let underway = status.as_ref().filter(|status| status.app.rollout.state == "progressing");
    if let Some(status) = underway.filter(|_| !change.detach && !change.dry_run) {
        let rollout = &status.app.rollout;
        out.say(&format!("nothing new: {} by {} is under way", rollout.what, rollout.by));
        let applied = v1::Applied { generation: rollout.generation, release: status.app.release };
        return begun(cluster, change, plan, &applied, out).await;
    }
    out.say(change.nothing);
    if let Some(status) = status.as_ref().filter(|status| is_back(&status.app)) {
        // The file asks for what the app went back to.
        let rollout = &status.app.rollout;
        out.say(&format!("{} is not what the file says any more: {}", rollout.what, rollout.reason));
    } else if let Some(status) = &status
        && status.app.rollout.state != "done"
        && !status.app.rollout.state.is_empty()
        && status.app.rollout.state != "progressing"
    {
        let rollout = &status.app.rollout;
        out.must_say(&format!(
            "but {} {}: {}",
            rollout.what,
            rollout.state.replace('_', " "),
            rollout.reason
        ));
        out.must_say(&format!(
            "hint: `wharf ps -p {}` shows its tasks; `wharf restart -p {0}` tries again",
            change.app.name
        ));
        print(out, plan, "failed", None, Some(status))?;
        return Ok(Exit::Failed);
    }
    // Nothing to do and not whole: what is waited for is no fault of the file.
    for waiting in status.iter().flat_map(|status| &status.services).flat_map(|service| &service.waiting) {
        out.must_say(&format!("  {waiting}"));
    }
    print(out, plan, "unchanged", None, status.as_ref())?;
    Ok(Exit::Done)
}

/// Whether an app has returned from a change that failed, and is whole.
fn is_back(app: &v1::App) -> bool {
    app.rollout.state == "rolled_back" && app.ready >= app.wanted
}

async fn wait_until_free(cluster: &Cluster, change: &Change, error: &CallError, out: &Output) -> Result<()> {
    if let Some(holder) = error.problem().and_then(|problem| problem.holder.as_ref()) {
        let since = rough(Duration::from_millis(super::now().saturating_sub(holder.started_at)));
        out.say(&format!("waiting: {} by {} has been under way for {since}", holder.what, holder.by));
        out.say("hint: Ctrl-C ends the wait and changes nothing; `--supersede` would take its place");
    }
    let deadline = Instant::now() + change.timeout;
    loop {
        tokio::time::sleep(LOOK).await;
        match cluster.client.get::<v1::AppStatus>(&app_path(&change.app, "")).await {
            Ok(status) if status.app.rollout.state != "progressing" => return Ok(()),
            Err(error) if is_not_found(&error) => return Ok(()),
            Ok(_) if Instant::now() < deadline => {}
            Ok(status) => bail!(hint(
                format!("{} is still under way after {}", status.app.rollout.what, rough(change.timeout)),
                "`wharf ps` says what it waits for; `--supersede` takes its place"
            )),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn begun(
    cluster: &Cluster,
    change: &Change,
    plan: &v1::Plan,
    applied: &v1::Applied,
    out: &Output,
) -> Result<Exit> {
    if change.detach {
        print(out, plan, "begun", Some(applied), None)?;
        out.say(&format!("under way; `wharf rollout status -p {}` shows how far it is", change.app.name));
        return Ok(Exit::Done);
    }
    let mut tree = Tree::new(out);
    let deadline = Instant::now() + change.timeout;
    let down = matches!(change.action, v1::Action::Down { .. });
    let watched = tokio::select! {
        // Dropped by Ctrl-C only: watching changes nothing.
        watched = watch(cluster, change, applied.generation, deadline, &mut tree) => watched?,
        _ = tokio::signal::ctrl_c() => {
            tree.end();
            let app = &change.app.name;
            out.must_say("\nthe change goes on in the cluster");
            if down {
                out.must_say(&format!("hint: `wharf ps -p {app}` shows what is left of it"));
            } else {
                out.must_say(&format!(
                    "hint: follow it again with `wharf rollout status -p {app} --watch`; `wharf rollout abort -p {app}` takes it back"
                ));
            }
            return Ok(Exit::Code(130));
        }
    };
    tree.end();
    let elapsed = rough(tree.since.elapsed());
    match watched {
        Watched::Gone if down => {
            out.say(&format!("{} is gone ({elapsed})", change.app.name));
            print(out, plan, "done", Some(applied), None)?;
            Ok(Exit::Done)
        }
        Watched::Gone => {
            print(out, plan, "failed", Some(applied), None)?;
            bail!("{} was taken down by somebody else meanwhile", change.app.name)
        }
        Watched::Late(status) => {
            out.must_say(&format!(
                "{} is not there yet after {elapsed}; it goes on in the cluster",
                change.app.name
            ));
            for waiting in
                status.iter().flat_map(|status| &status.services).flat_map(|service| &service.waiting)
            {
                out.must_say(&format!("  {waiting}"));
            }
            out.must_say(&format!(
                "hint: follow it again with `wharf rollout status -p {0} --watch`; `wharf ps -p {0}` shows its tasks",
                change.app.name
            ));
            print(out, plan, "not_yet", Some(applied), status.as_deref())?;
            Ok(Exit::NotYet)
        }
        Watched::Held(status) => {
            let (what, app) = (&status.app.rollout.what, &change.app.name);
            out.must_say(&format!("{what} goes on only when somebody says so ({elapsed})"));
            for waiting in status.services.iter().flat_map(|service| &service.waiting) {
                out.must_say(&format!("  {waiting}"));
            }
            out.must_say(&format!(
                "hint: `wharf rollout status -p {app}` says what it can be asked; `wharf rollout abort -p {app}` takes it back"
            ));
            print(out, plan, "not_yet", Some(applied), Some(&status))?;
            Ok(Exit::NotYet)
        }
        Watched::Over(status) => {
            let rollout = &status.app.rollout;
            let good = rollout.state_of(applied.generation) == Some("done");
            if good {
                let what = if rollout.generation == applied.generation {
                    rollout.what.clone()
                } else {
                    // It was over before we looked, and the next change has begun.
                    format!("this change; {} by {} has begun since", rollout.what, rollout.by)
                };
                out.say(&format!("{} {what} ({elapsed})", out.paint(Color::Good, "done:")));
                for url in &status.urls {
                    out.say(&format!("  {}", out.paint(Color::Strong, url)));
                }
            } else {
                explain(&status, applied.generation, out);
            }
            print(out, plan, if good { "done" } else { "failed" }, Some(applied), Some(&status))?;
            Ok(if good { Exit::Done } else { Exit::Failed })
        }
    }
}

pub(crate) fn print(
    out: &Output,
    plan: &v1::Plan,
    outcome: &'static str,
    applied: Option<&v1::Applied>,
    status: Option<&v1::AppStatus>,
) -> Result<()> {
    if out.format != Format::Json {
        return Ok(());
    }
    out.json(&Outcome {
        plan,
        outcome,
        generation: applied.map(|applied| applied.generation),
        release: applied.map(|applied| applied.release),
        rollout: status.map(|status| status.app.rollout.clone()),
        urls: status.map(|status| status.urls.clone()).unwrap_or_default(),
        failures: status.map(|status| status.failures.clone()).unwrap_or_default(),
    })
}

enum Watched {
    /// The rollout has ended, or another has taken its place.
    Over(Box<v1::AppStatus>),
    /// It goes on only when somebody says so.
    Held(Box<v1::AppStatus>),
    /// The app is gone.
    Gone,
    /// Time is up.
    Late(Option<Box<v1::AppStatus>>),
}

/// Watches until the rollout of `generation` is over. A connection that breaks is made again: the cluster goes on meanwhile.
async fn watch(
    cluster: &Cluster,
    change: &Change,
    generation: u64,
    deadline: Instant,
    tree: &mut Tree<'_>,
) -> Result<Watched> {
    let path = app_path(&change.app, "/watch");
    let mut client = cluster.client.clone();
    let mut latest = None;
    loop {
        match client.open(Method::GET, &path, empty()).await {
            Ok(response) => {
                let mut lines =
                    LineReader::<v1::AppStatus>::new(response.into_body(), client.timing().stream_silence());
                loop {
                    let tick = Instant::now() + Duration::from_secs(1);
                    match timeout_at(tick.min(deadline), lines.next()).await {
                        Ok(Ok(Some(status))) => {
                            tree.show(&status);
                            let rollout = &status.app.rollout;
                            let over = rollout.generation > generation
                                || (rollout.generation == generation && rollout.state != "progressing");
                            if over {
                                return Ok(Watched::Over(Box::new(status)));
                            }
                            if rollout.generation == generation && rollout.held {
                                return Ok(Watched::Held(Box::new(status)));
                            }
                            latest = Some(Box::new(status));
                        }
                        // The stream of an app that is gone ends.
                        Ok(Ok(None)) => break,
                        Ok(Err(_broken)) => break,
                        Err(_) if Instant::now() >= deadline => return Ok(Watched::Late(latest)),
                        Err(_) => tree.tick(),
                    }
                }
            }
            Err(error) if is_not_found(&error) => return Ok(Watched::Gone),
            Err(error) if error.is_connection() => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Ok(Watched::Late(latest));
        }
        if client.is_closed() {
            tokio::time::sleep(REDIAL).await;
            if let Ok(again) = cluster.redial().await {
                client = again;
            }
        }
    }
}

/// Says what went wrong: each failing task with everything that is known of its end.
fn explain(status: &v1::AppStatus, generation: u64, out: &Output) {
    let rollout = &status.app.rollout;
    if rollout.generation > generation {
        out.must_say(&format!("another change took its place: {} by {}", rollout.what, rollout.by));
        return;
    }
    let state = rollout.state.replace('_', " ");
    out.must_say(&format!(
        "{} {} {state}: {}",
        out.paint(Color::Bad, "failed:"),
        rollout.what,
        rollout.reason
    ));
    let mut told = BTreeSet::new();
    // What failed may be gone, and another task in its place.
    for task in &status.failures {
        told.insert((task.service.clone(), task.status.message.clone()));
        explain_task(task, out);
    }
    for service in &status.services {
        for task in &service.tasks {
            let status = &task.status;
            let bad = matches!(status.phase, Phase::Failed | Phase::Lost)
                || status.health == wharf_model::Health::Unhealthy
                || status.probe_output.is_some();
            if bad && told.insert((service.name.clone(), status.message.clone())) {
                explain_task(task, out);
            }
        }
        for waiting in &service.waiting {
            out.must_say(&format!("  {waiting}"));
        }
    }
    out.must_say(&format!(
        "hint: `wharf logs -p {0}` and `wharf events -p {0} --since 10m --no-follow` show more",
        status.app.name
    ));
}

fn explain_task(task: &v1::Task, out: &Output) {
    let status = &task.status;
    let node = task.node.as_deref().map(|node| format!(" on {node}")).unwrap_or_default();
    out.must_say(&format!("  {}{node}: {}", out.paint(Color::Strong, &task.name), ps::state(task)));
    if !status.message.is_empty() {
        out.must_say(&format!("    {}", status.message));
    }
    if let Some(probe) = &status.probe_output {
        // What it says may have several lines.
        out.must_say(&format!("    its check says: {}", probe.trim().replace('\n', "\n      ")));
    }
    if !status.last_log.is_empty() {
        out.must_say("    its last output:");
        for line in &status.last_log {
            out.must_say(&format!("      {} {line}", out.paint(Color::Dim, "|")));
        }
    }
    if let Some(hint) = &status.hint {
        out.must_say(&format!("    hint: {hint}"));
    }
}

/// Services and tasks as they come up: redrawn on a terminal, a line for each step elsewhere.
struct Tree<'a> {
    out: &'a Output,
    since: Instant,
    drawn: usize,
    status: Option<v1::AppStatus>,
    /// What was last said of each task.
    said: BTreeMap<String, String>,
    /// What services wait for.
    waits: BTreeMap<String, Wait>,
}

/// Something that is waited for now.
struct Wait {
    since: Instant,
    said: bool,
}

/// What tasks wait for passes by itself for the most part; from then on it is said although tasks are there.
const LASTING: Duration = Duration::from_secs(5);

impl<'a> Tree<'a> {
    fn new(out: &'a Output) -> Self {
        Self {
            out,
            since: Instant::now(),
            drawn: 0,
            status: None,
            said: BTreeMap::new(),
            waits: BTreeMap::new(),
        }
    }

    /// Keeps the latest status, and since when each thing is waited for.
    fn note(&mut self, status: &v1::AppStatus) {
        let mut before = std::mem::take(&mut self.waits);
        for waiting in status.services.iter().flat_map(|service| &service.waiting) {
            let wait = before.remove(waiting).unwrap_or_else(|| Wait { since: Instant::now(), said: false });
            self.waits.insert(waiting.clone(), wait);
        }
        self.status = Some(status.clone());
    }

    fn show(&mut self, status: &v1::AppStatus) {
        if self.out.quiet {
            return;
        }
        self.note(status);
        if self.out.live {
            self.draw();
            return;
        }
        for service in &status.services {
            for task in &service.tasks {
                // Bytes are for those who watch a terminal.
                let step = step(task, false);
                let key = task.id.clone();
                if self.said.get(&key) != Some(&step) {
                    self.out.say(&format!("{:>4}  {:<24} {step}", rough(self.since.elapsed()), task.name));
                    self.said.insert(key, step);
                }
            }
        }
        self.say_waits();
    }

    /// What stands in the way, each thing once.
    fn say_waits(&mut self) {
        for service in self.status.iter().flat_map(|status| &status.services) {
            for waiting in &service.waiting {
                let Some(wait) = self.waits.get_mut(waiting).filter(|wait| !wait.said) else { continue };
                if service.tasks.is_empty() || wait.since.elapsed() >= LASTING {
                    wait.said = true;
                    let elapsed = rough(self.since.elapsed());
                    self.out.say(&format!("{elapsed:>4}  {:<24} {waiting}", service.name));
                }
            }
        }
    }

    /// Seconds pass.
    fn tick(&mut self) {
        match (self.out.quiet, self.out.live) {
            (true, _) => {}
            (false, true) => self.draw(),
            (false, false) => self.say_waits(),
        }
    }

    fn draw(&mut self) {
        let Some(status) = &self.status else { return };
        let width = terminal_width();
        let mut lines = Vec::new();
        for service in &status.services {
            let color = if service.ready >= service.wanted { Color::Good } else { Color::Pending };
            let count = self.out.paint(color, &format!("{}/{}", service.ready, service.wanted));
            lines.push((format!("{} ", self.out.paint(Color::Strong, &service.name)), count));
            for task in &service.tasks {
                let node = task.node.clone().unwrap_or_else(|| "-".into());
                let color = match task.status.phase {
                    _ if task.ready => Color::Good,
                    Phase::Failed | Phase::Lost => Color::Bad,
                    _ => Color::Pending,
                };
                let text = format!("{:<24} {node:<12} {}", task.name, step(task, true));
                let text: String = text.chars().take(width.saturating_sub(4)).collect();
                lines.push(("  ".into(), self.out.paint(color, &text)));
            }
            let missing = service.tasks.iter().filter(|task| task.stop.is_none()).count() < service.wanted;
            let lasts = |waiting: &String| {
                self.waits.get(waiting).is_some_and(|wait| wait.since.elapsed() >= LASTING)
            };
            let shown = |waiting: &&String| missing || service.tasks.is_empty() || lasts(waiting);
            for waiting in service.waiting.iter().filter(shown).take(3) {
                let text: String = waiting.chars().take(width.saturating_sub(4)).collect();
                lines.push(("  ".into(), self.out.paint(Color::Dim, &text)));
            }
        }
        let mut screen = String::new();
        if self.drawn > 0 {
            screen.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for (indent, text) in &lines {
            screen.push_str(&format!("\x1b[2K{indent}{text}\n"));
        }
        let left_over = self.drawn.saturating_sub(lines.len());
        for _ in 0..left_over {
            screen.push_str("\x1b[2K\n");
        }
        if left_over > 0 {
            screen.push_str(&format!("\x1b[{left_over}A"));
        }
        self.drawn = lines.len();
        let mut err = std::io::stderr().lock();
        let _ = err.write_all(screen.as_bytes()).and_then(|()| err.flush());
    }

    fn end(&mut self) {
        if self.out.live && !self.out.quiet {
            self.draw();
        }
    }
}

/// Where a task is on its way, and how far.
fn step(task: &v1::Task, bytes: bool) -> String {
    let status = &task.status;
    let mut text = ps::state(task);
    if let Some(draining) = task.draining.as_ref().filter(|_| bytes) {
        text.push_str(&drain(draining, super::now()));
    }
    let telling = !status.phase.is_over() && !task.ready || status.phase == Phase::Failed;
    if telling && !status.message.is_empty() && !status.message.starts_with(&text) {
        text = format!("{text}: {}", status.message);
    }
    if bytes {
        if let Some(progress) = status.progress {
            text.push_str(&format!("  {} of {}", Bytes(progress.current), Bytes(progress.total)));
        }
        let since = status.started_at.map_or(task.created_at, |at| at.0);
        if !status.phase.is_over() && !task.ready {
            text.push_str(&format!("  {}", rough(Duration::from_millis(super::now().saturating_sub(since)))));
        }
    } else if let Some(node) = task.node.as_deref() {
        text.push_str(&format!(" on {node}"));
    }
    text
}

/// What a draining task waits for.
fn drain(task: &v1::TaskDrain, now: u64) -> String {
    let left = task.until.map(|until| until.saturating_sub(now).div_ceil(1000));
    match (task.led_to_by.len(), task.under_way, left) {
        (0, 0, _) => String::new(),
        (0, requests, left) => {
            let plural = if requests == 1 { "" } else { "s" };
            let left = left.map(|left| format!(", up to {left} s more")).unwrap_or_default();
            format!(": {requests} request{plural} under way{left}")
        }
        (1, ..) => format!(": {}", task.led_to_by[0]),
        (nodes, ..) => format!(": {nodes} nodes may still lead to it"),
    }
}

nix::ioctl_read_bad!(tiocgwinsz, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// The columns of the terminal behind standard error.
pub(crate) fn terminal_width() -> usize {
    terminal_size(2).map_or(80, |(columns, _)| usize::from(columns))
}

/// Columns and rows of the terminal behind a file descriptor.
#[expect(unsafe_code, reason = "the ioctl fills the struct that it is given")]
pub(crate) fn terminal_size(descriptor: i32) -> Option<(u16, u16)> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which `size` is; a descriptor that is no terminal is an error.
    unsafe { tiocgwinsz(descriptor, &raw mut size) }.ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
