//! `volume …`: volumes seen, and data on machines that are down given up.

use anyhow::{Result, bail};
use http::Method;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    commands::{ago, confirm},
    connect::{Cluster, query},
    hint,
    output::Output,
};

/// Look at volumes, and give up data on machines that are down
#[derive(Debug, clap::Args)]
pub(crate) struct Volume {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the volumes of the environment, where their data is, and whether it can be had
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf volume ls\n  wharf volume ls --all         of every environment"
    )]
    Ls {
        /// Of every environment
        #[arg(long, short)]
        all: bool,
    },
    /// Show everything known of a volume
    #[command(after_help = "Examples:\n  wharf volume inspect data\n  wharf volume inspect shop/data")]
    Inspect {
        /// `VOLUME` or `APP/VOLUME`
        volume: String,
    },
    /// Give up the data that a machine which is down holds: what waits for it starts elsewhere, with an empty volume
    #[command(
        after_help = "What lies on the machine stays there, and is used by no task again when it is back.\n\nExamples:\n  wharf volume release shop/data --node worker-2\n  wharf volume release -y data --node worker-2"
    )]
    Release {
        /// `VOLUME` or `APP/VOLUME`
        volume: String,
        /// The machine
        #[arg(long, value_name = "NAME")]
        node: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(crate) async fn run(args: Volume, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls { all } => ls(&cluster, all, out).await,
        Verb::Inspect { volume } => {
            out.json(&find(&cluster, &volume).await?)?;
            Ok(Exit::Done)
        }
        Verb::Release { volume, node, yes } => release(&cluster, &volume, &node, yes, out).await,
    }
}

async fn of_environment(cluster: &Cluster) -> Result<Vec<v1::Volume>> {
    let path = format!("/v1/volumes?environment={}", query(cluster.environment.as_str()));
    Ok(cluster.client.get(&path).await?)
}

async fn ls(cluster: &Cluster, all: bool, out: &Output) -> Result<Exit> {
    let volumes =
        if all { cluster.client.get("/v1/volumes").await? } else { of_environment(cluster).await? };
    let headers = ["ENVIRONMENT", "APP", "VOLUME", "STATE", "DATA ON", "USED BY"];
    out.list(&volumes, &headers, |volume| {
        let on: Vec<_> = volume
            .data
            .iter()
            .map(|data| match (data.state.as_str(), data.since) {
                ("ready", _) | (_, None) => data.node.clone(),
                (state, Some(since)) => format!("{} ({state}, {})", data.node, ago(since)),
            })
            .collect();
        let dash = |list: &[String]| if list.is_empty() { "-".to_owned() } else { list.join(", ") };
        vec![
            volume.environment.clone(),
            volume.app.clone(),
            volume.name.clone(),
            volume.state.clone(),
            dash(&on),
            dash(&volume.services),
        ]
    })?;
    for volume in volumes.iter().filter(|volume| !volume.reason.is_empty()) {
        out.say(&format!("{}/{}: {}", volume.app, volume.name, volume.reason));
        if let Some(hint) = &volume.hint {
            out.say(&format!("hint: {hint}"));
        }
    }
    Ok(Exit::Done)
}

/// The volume of that name, of whatever app has one in the environment.
async fn find(cluster: &Cluster, name: &str) -> Result<v1::Volume> {
    let (app, volume) = name.split_once('/').map_or((None, name), |(app, volume)| (Some(app), volume));
    let mut found = of_environment(cluster).await?;
    found.retain(|known| known.name == volume && app.is_none_or(|app| known.app == app));
    match found.len() {
        0 => bail!(hint(
            format!("there is no volume `{name}` in {}", cluster.environment),
            "`wharf volume ls` lists them"
        )),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<_> = found.iter().map(|known| format!("{}/{}", known.app, known.name)).collect();
            bail!(hint(
                format!("several apps have a volume `{name}`"),
                format!("say which: {}", names.join(", "))
            ))
        }
    }
}

async fn release(cluster: &Cluster, name: &str, node: &str, yes: bool, out: &Output) -> Result<Exit> {
    let volume = find(cluster, name).await?;
    if !yes {
        let elsewhere = volume.data.iter().any(|data| data.node != node);
        let begins = if elsewhere { "without it" } else { "with an empty one" };
        out.say(&format!(
            "- volume {}/{}: its data on {node} is given up; {} start(s) elsewhere {begins}",
            volume.app,
            volume.name,
            volume.services.join(" and ")
        ));
        if !confirm("Give it up?")? {
            out.say("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let path = format!(
        "/v1/volumes/{}/{}/{}/release",
        query(&volume.environment),
        query(&volume.app),
        query(&volume.name)
    );
    let wish = v1::VolumeRelease { node: node.to_owned() };
    let left: v1::Volume = cluster.client.call(Method::POST, &path, &wish).await?;
    match left.given_up.last() {
        Some(given) => {
            out.say(&format!("given up; what lies on {} stays there, as volume {}", given.node, given.id));
        }
        None => out.say("given up"),
    }
    Ok(Exit::Done)
}
