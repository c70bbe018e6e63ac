//! `app …`: apps and their releases.

use anyhow::Result;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    commands::ago,
    connect::{Cluster, app_path, query},
    output::{Format, Output},
};

/// Look at apps and their releases
#[derive(Debug, clap::Args)]
pub(crate) struct App {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the apps of an environment, or of all
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf app ls\n  wharf app ls --all --format json"
    )]
    Ls {
        /// Of all environments
        #[arg(long, short)]
        all: bool,
    },
    /// Show everything known of an app
    #[command(after_help = "Examples:\n  wharf app inspect shop\n  wharf app inspect shop --env staging")]
    Inspect {
        /// Its name
        app: String,
    },
    /// List the releases of an app, newest first
    #[command(
        after_help = "Examples:\n  wharf app history shop\n  wharf app history shop --show 3     the app as it was in release 3"
    )]
    History {
        /// Its name
        app: String,
        /// Print the normalised app of this release
        #[arg(long, value_name = "NUMBER")]
        show: Option<u64>,
    },
}

pub(crate) async fn run(args: App, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls { all } => {
            let path = if all {
                "/v1/apps".to_owned()
            } else {
                format!("/v1/apps?environment={}", query(cluster.environment.as_str()))
            };
            let apps: Vec<v1::App> = cluster.client.get(&path).await?;
            out.list(
                &apps,
                &["ENVIRONMENT", "NAME", "RELEASE", "STATE", "READY", "SERVICES", "CHANGED"],
                |app| {
                    vec![
                        app.environment.clone(),
                        app.name.clone(),
                        app.release.to_string(),
                        app.rollout.state.replace('_', " "),
                        format!("{}/{}", app.ready, app.wanted),
                        app.services.to_string(),
                        format!("{} ago", ago(app.rollout.started_at)),
                    ]
                },
            )?;
            if apps.is_empty() {
                out.say(&format!(
                    "there are no apps in environment `{}`; `wharf up` deploys one",
                    cluster.environment
                ));
            }
        }
        Verb::Inspect { app } => {
            let key = cluster.app(app.parse()?);
            let status: v1::AppStatus = cluster.client.get(&app_path(&key, "?spec=true")).await?;
            out.json(&status)?;
        }
        Verb::History { app, show } => {
            let key = cluster.app(app.parse()?);
            match show {
                Some(number) => {
                    let release: v1::Release =
                        cluster.client.get(&app_path(&key, &format!("/releases/{number}"))).await?;
                    out.json(&release)?;
                }
                None => history(
                    &cluster.client.get::<Vec<v1::Release>>(&app_path(&key, "/releases")).await?,
                    out,
                )?,
            }
        }
    }
    Ok(Exit::Done)
}

fn history(releases: &[v1::Release], out: &Output) -> Result<()> {
    if out.format == Format::Json {
        return out.json(&releases);
    }
    out.list(releases, &["RELEASE", "CREATED", "BY", "IMAGES"], |release| {
        let images: Vec<_> = release
            .images
            .iter()
            .map(|(service, image)| {
                // Twelve digits of a digest are enough to tell images apart by eye.
                let short = image
                    .split_once("@sha256:")
                    .map(|(name, digest)| format!("{name}@{}", &digest[..digest.len().min(12)]));
                format!("{service}={}", short.unwrap_or_else(|| image.clone()))
            })
            .collect();
        vec![
            format!("{}{}", release.number, if release.current { " (current)" } else { "" }),
            format!("{} ago", ago(release.created_at)),
            release.by.clone(),
            images.join(" "),
        ]
    })
}
