//! `version`.

use anyhow::Result;
use serde::Serialize;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    connect::Cluster,
    output::{Format, Output},
};

/// Show the versions of client and server
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  wharf version\n  wharf version --client --format json")]
pub(crate) struct Version {
    /// Do not ask the server
    #[arg(long)]
    client: bool,
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    server: Option<v1::Version>,
}

pub(crate) async fn run(args: Version, global: &Global, out: &Output) -> Result<Exit> {
    let (server, trouble) = if args.client {
        (None, None)
    } else {
        match Cluster::dial(global).await {
            Ok(cluster) => (Some(cluster.client.get::<v1::Version>("/v1/version").await?), None),
            Err(error) => (None, Some(error)),
        }
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), server };
    match out.format {
        Format::Json => out.json(&versions)?,
        Format::Table => {
            out.data(&format!("client   {}", versions.client))?;
            if let Some(server) = &versions.server {
                out.data(&format!("server   {} ({}), API {}", server.version, server.server, server.api))?;
                out.data(&format!(
                    "cluster  {} ({}), {} store",
                    server.cluster_name, server.cluster, server.store
                ))?;
                out.data(&format!("leader   {}", server.leader.as_deref().unwrap_or("none")))?;
            }
        }
    }
    match trouble {
        Some(error) => Err(error),
        None => Ok(Exit::Done),
    }
}
