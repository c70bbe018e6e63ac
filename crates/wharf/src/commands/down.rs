//! `down`: an app is taken down.

use anyhow::Result;
use wharf_api::v1;

use super::progress;
use crate::{
    Exit,
    cli::{Files, Global},
    connect::Cluster,
    output::Output,
};

/// Take an app down
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tasks stop within their grace periods; volumes and their data stay unless `--volumes` is given.\n\nExamples:\n  wharf down\n  wharf down -y -p shop --env staging --volumes"
)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Delete its volumes and their data, too
    #[arg(long, short)]
    volumes: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Return as soon as it is under way
    #[arg(long, short)]
    detach: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

pub(crate) async fn run(args: Down, global: &Global, out: &Output) -> Result<Exit> {
    let name = crate::project::app_name(&args.files, out)?;
    let cluster = Cluster::dial(global).await?;
    let change = progress::Change {
        app: cluster.app(name),
        action: v1::Action::Down { volumes: args.volumes },
        yes: args.yes,
        dry_run: args.dry_run,
        detach: args.detach,
        busy: progress::Busy::Supersede,
        timeout: std::time::Duration::from_secs(args.timeout),
        question: "Take it down?",
        nothing: "nothing to do: it is gone",
        note: progress::Note::default(),
    };
    progress::carry_out(&cluster, &change, out).await
}
