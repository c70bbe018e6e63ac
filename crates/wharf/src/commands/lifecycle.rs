//! `scale`, `restart`, `stop` and `start`: changes of an app that are no release.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use wharf_api::v1;

use super::progress;
use crate::{
    Exit,
    cli::{Files, Global},
    connect::Cluster,
    output::Output,
};

/// What these commands have in common.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Return as soon as the change is under way
    #[arg(long, short)]
    detach: bool,
    /// If another change of the app is under way: fail instead of waiting for it
    #[arg(long, conflicts_with = "supersede")]
    no_wait: bool,
    /// If another change of the app is under way: take its place
    #[arg(long)]
    supersede: bool,
    /// How long to wait for the outcome, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
}

/// Change how many tasks services have
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  wharf scale web=3\n  wharf scale -p shop web=3 worker=10 --detach\n\nThe next `wharf up` goes back to the number in the file."
)]
pub(crate) struct Scale {
    #[command(flatten)]
    pub(crate) common: Common,
    /// `SERVICE=TASKS`
    #[arg(required = true, value_parser = replicas, value_name = "SERVICE=TASKS")]
    services: Vec<(String, u32)>,
}

fn replicas(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("`{text}` is not SERVICE=TASKS, for example `web=3`");
    let (service, number) = text.split_once('=').ok_or_else(wrong)?;
    Ok((service.to_owned(), number.parse().map_err(|_| wrong())?))
}

/// Replace tasks by new ones, one after the other
#[derive(Debug, clap::Args)]
#[command(
    after_help = "As the service's update policy says, without losing requests where that can be had.\n\nExamples:\n  wharf restart web\n  wharf restart            every service"
)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Services; all if none is named
    services: Vec<String>,
}

/// Stop services; their volumes, networks and settings stay
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  wharf stop worker\n  wharf start worker       brings it back")]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Services; all if none is named
    services: Vec<String>,
}

/// Start stopped services
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  wharf start worker\n  wharf start              every stopped service")]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Services; all if none is named
    services: Vec<String>,
}

pub(crate) async fn scale(args: Scale, global: &Global, out: &Output) -> Result<Exit> {
    let mut replicas = BTreeMap::new();
    for (service, number) in args.services {
        if replicas.insert(service.clone(), number).is_some() {
            bail!(crate::Usage(format!("`{service}` is given twice")));
        }
    }
    change(
        args.common,
        v1::Action::Scale { replicas },
        "nothing to do: they have so many tasks already",
        global,
        out,
    )
    .await
}

pub(crate) async fn restart(args: Restart, global: &Global, out: &Output) -> Result<Exit> {
    change(args.common, v1::Action::Restart { services: args.services }, "nothing to restart", global, out)
        .await
}

pub(crate) async fn stop(args: Stop, global: &Global, out: &Output) -> Result<Exit> {
    change(
        args.common,
        v1::Action::Stop { services: args.services },
        "nothing to do: stopped already",
        global,
        out,
    )
    .await
}

pub(crate) async fn start(args: Start, global: &Global, out: &Output) -> Result<Exit> {
    change(
        args.common,
        v1::Action::Start { services: args.services },
        "nothing to do: none is stopped",
        global,
        out,
    )
    .await
}

async fn change(
    common: Common,
    action: v1::Action,
    nothing: &'static str,
    global: &Global,
    out: &Output,
) -> Result<Exit> {
    let name = crate::project::app_name(&common.files, out)?;
    let cluster = Cluster::dial(global).await?;
    let change = progress::Change {
        app: cluster.app(name),
        action,
        // What was typed says exactly what happens.
        yes: true,
        dry_run: false,
        detach: common.detach,
        busy: progress::Busy::from_flags(common.no_wait, common.supersede),
        timeout: Duration::from_secs(common.timeout),
        question: "",
        nothing,
        note: progress::Note::default(),
    };
    progress::carry_out(&cluster, &change, out).await
}
