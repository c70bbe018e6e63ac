//! `up`: an app is made as its Compose file says.

use anyhow::{Context as _, Result};
use http::Method;
use wharf_api::v1;

use super::{confirm, progress};
use crate::{
    Exit,
    build::{Builds, Wishes, git},
    cli::{Files, Global},
    connect::{Cluster, app_path},
    output::{Color, Format, Output},
    project,
};

/// How long a plan may take: images are looked up at their registries.
pub(crate) const PLANNING: std::time::Duration = std::time::Duration::from_secs(180);

/// Deploy an app: make it as its Compose file says
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Shows a plan (+ create, ~ change, ± replace, - remove), asks, carries out exactly that plan, and waits for the outcome.\n\nExamples:\n  wharf up                             the Compose file of this folder\n  wharf up -y -f compose.yaml -f prod.yaml --env prod\n  wharf up --dry-run                   the plan only; exits with 3 if it would change something"
)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Return as soon as the change is under way instead of waiting for its outcome
    #[arg(long, short)]
    detach: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ask the registry again for every image
    #[arg(long)]
    pull: bool,
    /// Print a warning instead of refusing keys that a cluster cannot honour
    #[arg(long)]
    allow_unsupported: bool,
    /// If another change of the app is under way: fail instead of waiting for it
    #[arg(long, conflicts_with = "supersede")]
    no_wait: bool,
    /// If another change of the app is under way: take its place
    #[arg(long)]
    supersede: bool,
    /// Build images also if they were built from the same files before
    #[arg(long, conflicts_with = "no_build")]
    build: bool,
    /// Fail instead of building images
    #[arg(long)]
    no_build: bool,
    /// Build on this node [default: the one that built last, or the least busy]
    #[arg(long, value_name = "NODE")]
    builder_node: Option<String>,
    /// What this release is about, for `wharf app history`
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// The git commit this is made of [default: the one that the Compose file's folder is at]
    #[arg(long, env = "WHARF_GIT_COMMIT", value_name = "COMMIT")]
    git_commit: Option<String>,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn run(args: Up, global: &Global, out: &Output) -> Result<Exit> {
    let loaded = project::load_all(&args.files, args.allow_unsupported, out)?;
    let mut spec = loaded.app.context("the Compose file defines no app")?;
    let cluster = Cluster::dial(global).await?;
    let source = source(&args).await;
    let wishes = Wishes {
        force: args.build,
        forbid: args.no_build,
        node: args.builder_node.clone(),
        builder: super::build::builder_of_environment(),
        ..Wishes::default()
    };
    let mut builds = Builds::look(&cluster, &mut spec, loaded.builds, wishes, out).await?;
    let app = cluster.app(spec.name.clone());
    let action = |builds: &Builds| v1::Action::Up {
        spec: Box::new(spec.clone()),
        pull: args.pull,
        built: builds.images(),
    };
    let mut shown = None;
    if builds.has_work() {
        let mut plan = plan(&cluster, &app, &action(&builds)).await?;
        plan.operations.splice(0..0, builds.operations());
        show(&plan, out)?;
        if !plan.refusals.is_empty() {
            progress::print(out, &plan, "failed", None, None)?;
            return Ok(Exit::Failed);
        }
        if args.dry_run {
            progress::print(out, &plan, "planned", None, None)?;
            out.say("nothing was built or changed (`--dry-run`)");
            return Ok(Exit::NotYet);
        }
        if !agreed(args.yes, "Do this?")? {
            out.say("nothing was changed");
            return Ok(Exit::Failed);
        }
        builds.run(&cluster, out).await.context("nothing was changed")?;
        shown = Some(plan);
    }
    let change = progress::Change {
        app,
        action: action(&builds),
        yes: args.yes,
        dry_run: args.dry_run,
        detach: args.detach,
        busy: progress::Busy::from_flags(args.no_wait, args.supersede),
        timeout: std::time::Duration::from_secs(args.timeout),
        question: "Do this?",
        nothing: "nothing to do: everything is as the file says",
        note: progress::Note { message: args.message, source },
    };
    progress::carry_out_shown(&cluster, &change, shown, out).await
}

/// What the Compose file was taken from: as it is given, or as git says it of the file's folder.
async fn source(args: &Up) -> Option<v1::GitSource> {
    if let Some(commit) = args.git_commit.as_ref().filter(|commit| !commit.is_empty()) {
        return Some(v1::GitSource { commit: commit.clone(), branch: None, dirty: None });
    }
    git::source(&project::folder(&args.files)?).await
}

/// Asks for a plan.
pub(crate) async fn plan(
    cluster: &Cluster,
    app: &wharf_model::AppKey,
    action: &v1::Action,
) -> Result<v1::Plan> {
    let wish = v1::PlanRequest { action: action.clone() };
    Ok(cluster.client.call_within(Method::POST, &app_path(app, "/plan"), &wish, PLANNING).await?)
}

/// Shows a plan: what changes, each with its reason.
pub(crate) fn show(plan: &v1::Plan, out: &Output) -> Result<()> {
    if out.format == Format::Json {
        return Ok(());
    }
    // What stays is shown only if there is something to say about it, beside what changes.
    let changing: Vec<_> = plan
        .operations
        .iter()
        .filter(|operation| {
            operation.change != v1::Change::Keep || !plan.is_noop() && !operation.reason.is_empty()
        })
        .collect();
    if !changing.is_empty() {
        let back = plan.rollback_of.map(|number| format!(" (back to {number})")).unwrap_or_default();
        let release = plan.release.map(|number| format!(", release {number}{back}")).unwrap_or_default();
        out.say(&format!(
            "{} in environment {}{release}:",
            out.paint(Color::Strong, &plan.app),
            plan.environment
        ));
    }
    let width = changing.iter().map(|operation| operation.name.chars().count()).max().unwrap_or(0);
    for operation in changing {
        let color = match operation.change {
            v1::Change::Create => Color::Good,
            v1::Change::Update | v1::Change::Replace => Color::Pending,
            v1::Change::Remove => Color::Bad,
            v1::Change::Keep => Color::Dim,
        };
        let symbol = out.paint(color, &operation.change.symbol().to_string());
        let reason = if operation.reason.is_empty() {
            String::new()
        } else {
            format!("  {}", out.paint(Color::Dim, &operation.reason))
        };
        out.say(format!("  {symbol} {:<8} {:<width$}{reason}", operation.kind, operation.name).trim_end());
    }
    for warning in &plan.warnings {
        out.must_say(&format!("{}: {warning}", out.paint(Color::Pending, "warning")));
    }
    for refusal in &plan.refusals {
        out.must_say(&format!("{}: {}", out.paint(Color::Bad, "error"), refusal.message));
        if let Some(hint) = &refusal.hint {
            out.must_say(&format!("hint: {hint}"));
        }
    }
    Ok(())
}

/// Whether the person agrees.
pub(crate) fn agreed(yes: bool, question: &str) -> Result<bool> {
    if yes { Ok(true) } else { confirm(question) }
}
