//! `inspect`: everything known of a thing.

use anyhow::{Result, bail};
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    connect::{Cluster, app_path, is_not_found, query},
    hint,
    output::Output,
};

/// Show everything known of an app, service, task or node
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Looks for a task, a node and an app of that name, in this order.\n\nExamples:\n  wharf inspect shop-web-1             a task\n  wharf inspect --container shop-web-1  its container, as the engine sees it\n  wharf inspect shop/web               a service\n  wharf inspect worker-1               a node"
)]
pub(crate) struct Inspect {
    /// What the engine says of a task's container
    #[arg(long)]
    container: bool,
    /// A task, node or app, or `APP/SERVICE`
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) async fn run(args: Inspect, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let mut found = Vec::new();
    for name in &args.names {
        found.push(if args.container {
            cluster.client.get(&format!("/v1/tasks/{}/inspect", query(name))).await?
        } else {
            look(&cluster, name).await?
        });
    }
    out.json(&found)?;
    Ok(Exit::Done)
}

async fn look(cluster: &Cluster, name: &str) -> Result<serde_json::Value> {
    if let Some((app, service)) = name.split_once('/') {
        let key = cluster.app(app.parse()?);
        let status: v1::AppStatus = cluster.client.get(&app_path(&key, "?spec=true")).await?;
        let names: Vec<_> = status.services.iter().map(|service| service.name.clone()).collect();
        return match status.services.into_iter().find(|found| found.name == service) {
            Some(service) => Ok(serde_json::to_value(service)?),
            None => bail!(hint(
                format!("app {app} has no service `{service}`"),
                format!("it has: {}", names.join(", "))
            )),
        };
    }
    let mut paths = vec![format!("/v1/tasks/{}", query(name)), format!("/v1/nodes/{}", query(name))];
    if let Ok(app) = name.parse() {
        paths.push(app_path(&cluster.app(app), "?spec=true"));
    }
    for path in paths {
        match cluster.client.get::<serde_json::Value>(&path).await {
            Ok(value) => return Ok(value),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!(hint(
        format!("there is no task, node or app `{name}`"),
        "`wharf ps --all`, `wharf node ls` and `wharf app ls --all` list them"
    ))
}
