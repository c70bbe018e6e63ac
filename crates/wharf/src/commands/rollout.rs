//! `rollout …`: how far the latest change of an app has come, and steering it.
//!
//! A verb names the rollout that was looked at just before: if another change begins in between, the cluster refuses it.

use std::{io::Write as _, time::Duration};

use anyhow::{Result, bail};
use http::Method;
use tokio::time::{Instant, sleep};
use wharf_api::v1;
use wharf_model::AppKey;

use super::{app::Which, client_name};
use crate::{
    Exit, cli,
    cli::Global,
    connect::{Cluster, app_path},
    hint,
    output::{Format, Output, rough, table},
};

/// Between looks at a rollout.
const LOOK: Duration = Duration::from_millis(500);

/// Watch and steer how an app moves to a release
#[derive(Debug, clap::Args)]
pub(crate) struct Rollout {
    #[command(subcommand)]
    verb: Verb,
}

impl Rollout {
    /// The flags that say which files.
    pub(crate) fn files(&mut self) -> &mut cli::Files {
        match &mut self.verb {
            Verb::Status { which, .. } => &mut which.files,
            Verb::Pause(args) | Verb::Resume(args) | Verb::Abort(args) => &mut args.which.files,
            Verb::Promote { common, .. } => &mut common.which.files,
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show how far the latest change of an app has come, and what it waits for
    #[command(
        after_help = "Exits with 0 if it is done, 3 while it is under way, 1 if it failed.\n\nExamples:\n  wharf rollout status\n  wharf rollout status shop --watch      until it is over"
    )]
    Status {
        #[command(flatten)]
        which: Which,
        /// Go on showing it until it is over
        #[arg(long, short)]
        watch: bool,
    },
    /// Let nothing new of a rollout begin; what serves goes on serving
    #[command(
        after_help = "Examples:\n  wharf rollout pause\n  wharf rollout pause shop --reason 'errors in the log'"
    )]
    Pause(Common),
    /// Let a paused rollout go on
    #[command(after_help = "Examples:\n  wharf rollout resume")]
    Resume(Common),
    /// Let a blue-green or canary rollout take its next step
    #[command(
        after_help = "Of blue-green the new set takes over; of canary the next share of the requests is its. Ends a pause.\n\nExamples:\n  wharf rollout promote\n  wharf rollout promote shop --all       past every step there is"
    )]
    Promote {
        #[command(flatten)]
        common: Common,
        /// Past every step there is, not the present one only
        #[arg(long, visible_alias = "full")]
        all: bool,
    },
    /// Take a rollout back: the app returns to the release before
    #[command(
        after_help = "Examples:\n  wharf rollout abort\n  wharf rollout abort shop --reason 'wrong build'"
    )]
    Abort(Common),
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    which: Which,
    /// Why, for those who look at it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Return at once instead of waiting for the effect
    #[arg(long, short)]
    detach: bool,
    /// How long to wait for the effect, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// What is asked of a rollout, and what it has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Pause,
    Resume,
    Promote { all: bool },
    Abort,
}
impl Wish {
    const fn verb(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote { .. } => "promote",
            Self::Abort => "abort",
        }
    }
}

pub(crate) async fn run(args: Rollout, global: &Global, out: &Output) -> Result<Exit> {
    match args.verb {
        Verb::Status { which, watch } => {
            let name = which.name(out)?;
            let cluster = Cluster::dial(global).await?;
            let app = cluster.app(name);
            if watch { follow(&cluster, &app, out).await } else { show(&look(&cluster, &app).await?, out) }
        }
        Verb::Pause(common) => steer(common, Wish::Pause, global, out).await,
        Verb::Resume(common) => steer(common, Wish::Resume, global, out).await,
        Verb::Promote { common, all } => steer(common, Wish::Promote { all }, global, out).await,
        Verb::Abort(common) => steer(common, Wish::Abort, global, out).await,
    }
}

async fn look(cluster: &Cluster, app: &AppKey) -> Result<v1::RolloutStatus> {
    Ok(cluster.client.get(&app_path(app, "/rollout")).await?)
}

/// What a look at a rollout exits with.
fn exit(status: &v1::RolloutStatus) -> Exit {
    match status.rollout.state.as_str() {
        "done" => Exit::Done,
        "progressing" => Exit::NotYet,
        _ => Exit::Failed,
    }
}

fn show(status: &v1::RolloutStatus, out: &Output) -> Result<Exit> {
    if out.format == Format::Json {
        out.json(status)?;
    } else {
        for line in lines(status, super::now()) {
            out.data(&line)?;
        }
    }
    Ok(exit(status))
}

/// Shows a rollout until it is over: redrawn on a terminal, elsewhere whenever it has moved.
async fn follow(cluster: &Cluster, app: &AppKey, out: &Output) -> Result<Exit> {
    let (mut drawn, mut last) = (0, None);
    let mut client = cluster.client.clone();
    loop {
        let status: v1::RolloutStatus = match client.get(&app_path(app, "/rollout")).await {
            Ok(status) => status,
            // The cluster goes on meanwhile.
            Err(error) if error.is_connection() => {
                sleep(2 * LOOK).await;
                if let Ok(again) = cluster.redial().await {
                    client = again;
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let over = status.rollout.state != "progressing";
        match (out.format, out.live) {
            (Format::Json, _) if last.as_ref() != Some(&status) => out.json_line(&status)?,
            (Format::Json, _) => {}
            (Format::Table, true) => drawn = redraw(&lines(&status, super::now()), drawn),
            (Format::Table, false) => {
                // Without the time, which always moves.
                let now = status.rollout.started_at;
                if last.as_ref().is_none_or(|last| lines(last, now) != lines(&status, now)) {
                    for line in lines(&status, super::now()) {
                        out.data(&line)?;
                    }
                }
            }
        }
        if over {
            return Ok(exit(&status));
        }
        last = Some(status);
        sleep(LOOK).await;
    }
}

/// Writes lines over those that were drawn before; how many there are now.
fn redraw(lines: &[String], drawn: usize) -> usize {
    let mut screen = if drawn > 0 { format!("\x1b[{drawn}A") } else { String::new() };
    let width = super::progress::terminal_width();
    for line in lines {
        let line: String = line.chars().take(width.saturating_sub(1)).collect();
        screen.push_str(&format!("\x1b[2K{line}\n"));
    }
    screen.push_str("\x1b[J");
    let mut err = std::io::stderr().lock();
    // Nobody to tell is no reason to stop.
    let _ = err.write_all(screen.as_bytes()).and_then(|()| err.flush());
    lines.len()
}

async fn steer(args: Common, wish: Wish, global: &Global, out: &Output) -> Result<Exit> {
    let name = args.which.name(out)?;
    let cluster = Cluster::dial(global).await?;
    let app = cluster.app(name);
    let before = look(&cluster, &app).await?;
    let generation = before.rollout.generation;
    if wish == Wish::Resume && before.paused.is_none() && before.rollout.state == "progressing" {
        out.say(&format!("{} of {} is not paused", before.rollout.what, app.name));
        return Ok(Exit::Done);
    }
    let request = v1::RolloutWish {
        generation,
        client: client_name(),
        reason: args.reason.unwrap_or_default(),
        whole: wish == Wish::Promote { all: true },
    };
    let path = app_path(&app, &format!("/rollout/{}", wish.verb()));
    let mut status: v1::RolloutStatus = cluster.client.call(Method::POST, &path, &request).await?;
    let what = &before.rollout.what;
    if args.detach {
        out.say(&format!("asked {what} of {} to {}", app.name, wish.verb()));
        print(&status, out)?;
        return Ok(Exit::Done);
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        if status.rollout.generation != generation {
            bail!(
                "another change took the place of {what}: {} by {}",
                status.rollout.what,
                status.rollout.by
            );
        }
        if let Some(effect) = effect(wish, &before, &status) {
            print(&status, out)?;
            return match effect {
                Ok(said) => {
                    out.say(&said);
                    Ok(Exit::Done)
                }
                Err(said) => {
                    out.must_say(&said);
                    Ok(Exit::Failed)
                }
            };
        }
        if Instant::now() >= deadline {
            print(&status, out)?;
            out.must_say(&format!("{what} was asked to {}, and it has no effect yet", wish.verb()));
            out.must_say(&format!("hint: `wharf rollout status -p {}` says what it waits for", app.name));
            return Ok(Exit::NotYet);
        }
        sleep(LOOK).await;
        status = match look(&cluster, &app).await {
            Ok(status) => status,
            Err(error) => bail!(hint(
                format!("{what} was asked to {}; what came of it is not known: {error:#}", wish.verb()),
                format!("`wharf rollout status -p {}` shows it", app.name)
            )),
        };
    }
}

fn print(status: &v1::RolloutStatus, out: &Output) -> Result<()> {
    if out.format == Format::Json { out.json(status) } else { Ok(()) }
}

/// What has come of a wish, in words, if it has an effect: `Err` if that is another than was wished for.
fn effect(
    wish: Wish,
    before: &v1::RolloutStatus,
    status: &v1::RolloutStatus,
) -> Option<Result<String, String>> {
    let (what, app) = (&status.rollout.what, &status.app);
    let ended = || format!("{what} {}: {}", status.rollout.state.replace('_', " "), status.rollout.reason);
    let follow = format!("`wharf rollout status -p {app} --watch` follows it");
    match (wish, status.rollout.state.as_str()) {
        (Wish::Abort, "rolled_back") => {
            let to = status.from.map(|from| format!(" to release {from}")).unwrap_or_default();
            Some(Ok(format!("{what} was taken back: {app} has returned{to}")))
        }
        (Wish::Abort, "progressing") => None,
        (Wish::Resume | Wish::Promote { .. }, "done") => Some(Ok(format!("{what} is done"))),
        (Wish::Resume, "progressing") => {
            status.paused.is_none().then(|| Ok(format!("{what} goes on; {follow}")))
        }
        (Wish::Promote { all: true }, "progressing") => None,
        (Wish::Promote { all: false }, "progressing") => {
            // Once a new set takes over, it is there when every gateway leads to it, and that ends the rollout.
            let switched = |service: &v1::RolloutService| {
                service.step.as_ref().is_some_and(|step| step.switched_at.is_some())
            };
            let went_on = status.promoted.is_none()
                && steps(status) != steps(before)
                && !status.services.iter().any(switched);
            went_on.then(|| Ok(format!("{what} goes on; {follow}")))
        }
        (Wish::Pause, "progressing") => {
            let settled =
                |service: &v1::RolloutService| service.stopping == 0 && service.new == service.ready;
            let paused = status.paused.is_some() && status.services.iter().all(settled);
            paused.then(|| Ok(format!("{what} is paused; `wharf rollout resume -p {app}` lets it go on")))
        }
        _ => Some(Err(ended())),
    }
}

/// Where each service is by its strategy.
fn steps(status: &v1::RolloutStatus) -> Vec<(&str, Option<(u32, u8)>)> {
    let step = |step: &v1::RolloutStep| (step.number, step.percent);
    status.services.iter().map(|service| (service.name.as_str(), service.step.as_ref().map(step))).collect()
}

/// A rollout as people read it at `now`.
fn lines(status: &v1::RolloutStatus, now: u64) -> Vec<String> {
    let rollout = &status.rollout;
    let since = |at: u64| rough(Duration::from_millis(now.saturating_sub(at)));
    let from = status.from.map(|from| format!(", from release {from}")).unwrap_or_default();
    let state = match (rollout.state.as_str(), status.returning) {
        ("progressing", true) => format!("returning for {}", since(rollout.started_at)),
        ("progressing", false) => format!("under way for {}", since(rollout.started_at)),
        (state, _) => {
            let took = rollout.ended_at.map_or(0, |ended| ended.saturating_sub(rollout.started_at));
            format!("{} after {}", state.replace('_', " "), rough(Duration::from_millis(took)))
        }
    };
    let mut lines = vec![format!(
        "{} in environment {}: {} by {}{from}: {state}",
        status.app, status.environment, rollout.what, rollout.by
    )];
    if !rollout.reason.is_empty() {
        lines.push(format!("  {}", rollout.reason));
    }
    let asked = |what: &str, asked: &v1::Asked| {
        let reason = if asked.reason.is_empty() { String::new() } else { format!(": {}", asked.reason) };
        format!("  {what} by {} {} ago{reason}", asked.by, since(asked.at))
    };
    lines.extend(status.paused.as_ref().map(|paused| asked("paused", paused)));
    lines.extend(status.promoted.as_ref().map(|promoted| asked("promoted", promoted)));
    lines.extend(status.aborted.as_ref().map(|aborted| asked("aborted", aborted)));
    let rows: Vec<_> = status
        .services
        .iter()
        .map(|service| {
            let kept = if service.kept_until.is_some() && service.old > 0 { " kept" } else { "" };
            let mut old = format!("{}{kept}", service.old);
            if service.stopping > 0 {
                old.push_str(&format!(", {} stopping", service.stopping));
            }
            let step = service.step.as_ref().map(|step| position(step, now)).unwrap_or_default();
            let new = format!("{}/{} ready", service.ready, service.wanted);
            vec![service.name.clone(), service.strategy.clone(), new, old, step]
        })
        .collect();
    lines.extend(
        table(&["SERVICE", "STRATEGY", "NEW", "OLD", "STEP"], &rows)
            .into_iter()
            .map(|line| format!("  {line}")),
    );
    for service in &status.services {
        let name = &service.name;
        if let Some(step) = &service.step {
            let preview = step.preview.as_ref().filter(|_| step.switched_at.is_none());
            lines.extend(preview.map(|host| format!("  {name}: the new set answers at {host}")));
            let figures =
                [("old", &step.old), ("new", &step.new)].map(|(set, figures)| (set, figures.as_ref()));
            if let [(_, Some(old)), (_, Some(new))] = figures {
                lines.push(format!("  {name}: old {}; new {}", counted(old), counted(new)));
            }
            if !step.verdict.is_empty() {
                lines.push(format!("  {name}: {}", step.verdict));
            }
        }
        if let Some(until) = service.kept_until {
            let left = rough(Duration::from_millis(until.saturating_sub(now)));
            lines.push(format!(
                "  {name}: the old set is kept for another {left}; `wharf rollback` returns to it at once"
            ));
        }
        lines.extend(service.waiting.iter().map(|waiting| format!("  {name}: {waiting}")));
    }
    lines.extend(status.waiting.iter().map(|waiting| format!("  {waiting}")));
    if !status.verbs.is_empty() {
        lines.push(format!("  it can be asked to: {}", status.verbs.join(", ")));
    }
    lines
}

/// Where a service is by its strategy: `2 of 3, 25 %, 40s left`.
fn position(step: &v1::RolloutStep, now: u64) -> String {
    if step.switched_at.is_some() {
        return "switched".into();
    }
    let mut parts = Vec::new();
    if step.of > 0 {
        parts.push(if step.number > step.of {
            "all steps passed".to_owned()
        } else {
            format!("{} of {}", step.number, step.of)
        });
        parts.push(format!("{} %", step.percent));
    }
    match (step.since, step.until) {
        (None, _) => parts.push("the new set comes up".into()),
        (Some(_), Some(until)) if until > now => {
            parts.push(format!("{} left", rough(Duration::from_millis(until - now))));
        }
        (Some(_), _) if step.promote == "manual" => parts.push("waits to be promoted".into()),
        (Some(_), _) => {}
    }
    parts.join(", ")
}

/// Requests, share of failures and latency of one set.
fn counted(figures: &v1::SetFigures) -> String {
    let latency = match figures.p95_micros {
        Some(micros) => format!(", 95 % within {}.{} ms", micros / 1000, micros % 1000 / 100),
        None => String::new(),
    };
    let permille = (figures.failures * 1000).checked_div(figures.requests).unwrap_or(0);
    format!("{} requests, {}.{} % failed{latency}", figures.requests, permille / 10, permille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> v1::RolloutService {
        v1::RolloutService {
            name: name.into(),
            strategy: "rolling".into(),
            wanted: 3,
            new: 2,
            ready: 1,
            old: 1,
            stopping: 1,
            step: None,
            kept_until: None,
            waiting: Vec::new(),
        }
    }
    fn status(state: &str) -> v1::RolloutStatus {
        v1::RolloutStatus {
            environment: "prod".into(),
            app: "shop".into(),
            rollout: v1::RolloutView {
                generation: 7,
                what: "release 5".into(),
                by: "ada@laptop".into(),
                started_at: 1_000,
                state: state.into(),
                reason: String::new(),
                ended_at: None,
                before: None,
                held: false,
            },
            release: Some(5),
            from: Some(4),
            returning: false,
            paused: None,
            promoted: None,
            aborted: None,
            services: vec![service("web")],
            waiting: Vec::new(),
            verbs: Vec::new(),
        }
    }
    fn step(number: u32, since: Option<u64>) -> v1::RolloutStep {
        v1::RolloutStep {
            number,
            of: 3,
            percent: 10,
            promote: "auto".into(),
            since,
            until: since.map(|since| since + 60_000),
            verdict: String::new(),
            switched_at: None,
            preview: None,
            old: None,
            new: None,
        }
    }
    fn asked() -> Option<v1::Asked> {
        Some(v1::Asked { by: "bob@desk".into(), at: 3_000, reason: "looks wrong".into() })
    }

    #[test]
    fn a_rollout_is_shown_with_counts_steps_figures_and_who_holds_it() {
        let mut status = status("progressing");
        status.paused = asked();
        status.verbs = vec!["resume".into(), "abort".into()];
        status.services[0].waiting = vec!["shop-web-2: waits for its check".into()];
        let mut api = service("api");
        api.strategy = "canary".into();
        let figures =
            |requests, failures| Some(v1::SetFigures { requests, failures, p95_micros: Some(20_500) });
        api.step =
            Some(v1::RolloutStep { old: figures(1000, 1), new: figures(200, 7), ..step(2, Some(5_000)) });
        status.services.insert(0, api);
        let expected = "\
shop in environment prod: release 5 by ada@laptop, from release 4: under way for 9s
  paused by bob@desk 7s ago: looks wrong
  SERVICE  STRATEGY  NEW        OLD            STEP
  api      canary    1/3 ready  1, 1 stopping  2 of 3, 10 %, 55s left
  web      rolling   1/3 ready  1, 1 stopping
  api: old 1000 requests, 0.1 % failed, 95 % within 20.5 ms; new 200 requests, 3.5 % failed, 95 % within 20.5 ms
  web: shop-web-2: waits for its check
  it can be asked to: resume, abort";
        assert_eq!(lines(&status, 10_000).join("\n"), expected);
    }

    #[test]
    fn what_a_step_waits_for_is_said() {
        assert_eq!(position(&step(1, None), 0), "1 of 3, 10 %, the new set comes up");
        let manual = v1::RolloutStep { promote: "manual".into(), ..step(4, Some(0)) };
        assert_eq!(position(&manual, 60_000), "all steps passed, 10 %, waits to be promoted");
        let switched = v1::RolloutStep { switched_at: Some(1), ..step(4, Some(0)) };
        assert_eq!(position(&switched, 9), "switched");
    }

    #[test]
    fn a_wish_has_an_effect_when_the_cluster_has_followed_it() {
        let before = status("progressing");
        let after = |wish, status: &v1::RolloutStatus| effect(wish, &before, status).map(|said| said.is_ok());
        let mut pausing = status("progressing");
        pausing.paused = asked();
        assert_eq!(after(Wish::Pause, &pausing), None, "a task is still on its way");
        (pausing.services[0].new, pausing.services[0].stopping) = (1, 0);
        assert_eq!(after(Wish::Pause, &pausing), Some(true));
        assert_eq!(after(Wish::Resume, &pausing), None);
        assert_eq!(after(Wish::Resume, &before), Some(true));

        let mut promoted = status("progressing");
        promoted.services[0].step = Some(step(2, None));
        assert_eq!(after(Wish::Promote { all: false }, &promoted), Some(true));
        assert_eq!(after(Wish::Promote { all: true }, &promoted), None);
        let mut switched = promoted.clone();
        switched.services[0].step = Some(v1::RolloutStep { switched_at: Some(9), ..step(2, None) });
        assert_eq!(after(Wish::Promote { all: false }, &switched), None, "gateways have yet to follow");
        promoted.promoted = asked();
        assert_eq!(after(Wish::Promote { all: false }, &promoted), None);
        assert_eq!(after(Wish::Promote { all: true }, &status("done")), Some(true));

        assert_eq!(after(Wish::Abort, &before), None);
        assert_eq!(after(Wish::Abort, &status("rolled_back")), Some(true));
        for wish in [Wish::Pause, Wish::Resume, Wish::Promote { all: false }] {
            assert_eq!(after(wish, &status("rolled_back")), Some(false), "{wish:?}");
        }
        assert_eq!(after(Wish::Abort, &status("done")), Some(false));
    }
}
