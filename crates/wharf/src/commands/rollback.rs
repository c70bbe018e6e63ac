//! `rollback`: an app becomes what it was in an earlier release.

use anyhow::Result;
use wharf_api::v1;

use super::{app::Which, progress};
use crate::{Exit, cli::Global, connect::Cluster, output::Output};

/// Return an app to an earlier release
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Makes a new release of the earlier one: exactly its images, configs, secrets and routes, whatever their tags and newest versions are by now.\nWhat somebody has scaled since stays as it is scaled. Shows what differs and asks; the Compose file is not needed.\n\nExamples:\n  wharf rollback                  to the latest release that was done, other than the present one\n  wharf rollback shop --to 3 -y\n  wharf rollback --dry-run        what would change; exits with 3 if anything would"
)]
pub(crate) struct Rollback {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The release to return to, as `wharf app history` numbers them [default: the latest other one that was done]
    #[arg(long, value_name = "RELEASE")]
    to: Option<u64>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Return as soon as it is under way
    #[arg(long, short)]
    detach: bool,
    /// Show what would change, and change nothing
    #[arg(long, visible_alias = "plan")]
    dry_run: bool,
    /// Why, for `wharf app history`
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn run(args: Rollback, global: &Global, out: &Output) -> Result<Exit> {
    let name = args.which.name(out)?;
    let cluster = Cluster::dial(global).await?;
    let change = progress::Change {
        app: cluster.app(name),
        action: v1::Action::Rollback { to: args.to },
        yes: args.yes,
        dry_run: args.dry_run,
        detach: args.detach,
        // Whoever goes back does not wait for what went wrong.
        busy: progress::Busy::Supersede,
        timeout: std::time::Duration::from_secs(args.timeout),
        question: "Go back?",
        nothing: "nothing to do: the app is as it was then",
        note: progress::Note { message: args.message, source: None },
    };
    progress::carry_out(&cluster, &change, out).await
}
