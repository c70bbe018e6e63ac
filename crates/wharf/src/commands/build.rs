//! `build`: images of an app are built, and nothing that runs is changed.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use wharf_api::v1;

use super::env;
use crate::{
    Exit,
    build::{Builds, Wishes},
    cli::{Files, Global},
    connect::Cluster,
    hint,
    output::{Format, Output},
    project,
};

/// Build the images of an app on the cluster; `up` deploys them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The files of each build are packed here and sent to one node, whose Docker Engine builds. Nothing that runs is changed.\n\nExamples:\n  wharf build                  every service with `build`\n  wharf build web --no-cache   one of them, from scratch\n  wharf build --pull           with the newest base images of their registries"
)]
pub(crate) struct Build {
    /// Services to build [default: all that are built]
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    pub(crate) files: Files,
    /// Reuse nothing of earlier builds
    #[arg(long)]
    no_cache: bool,
    /// Ask registries for newer base images
    #[arg(long)]
    pull: bool,
    /// Build on this node [default: the one that built last, or the least busy]
    #[arg(long, value_name = "NODE")]
    builder_node: Option<String>,
    /// By which builder of the engine [default: BuildKit, unless only the classic one can; `DOCKER_BUILDKIT=0` chooses that]
    #[arg(long, value_enum)]
    builder: Option<Kind>,
    /// Give an argument to every build; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Print a warning instead of refusing keys that a cluster cannot honour
    #[arg(long)]
    allow_unsupported: bool,
}

/// A builder of Docker Engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Every engine has it
    Classic,
    /// Cache mounts, secrets, heredocs, platforms
    Buildkit,
}

/// What `DOCKER_BUILDKIT` says, as the docker CLI reads it.
pub(crate) fn builder_of_environment() -> v1::Builder {
    match env("DOCKER_BUILDKIT").as_deref() {
        Some("0" | "false") => v1::Builder::Classic,
        Some(_) | None => v1::Builder::Auto,
    }
}

pub(crate) async fn run(args: Build, global: &Global, out: &Output) -> Result<Exit> {
    let loaded = project::load_all(&args.files, args.allow_unsupported, out)?;
    let mut spec = loaded.app.context("the Compose file defines no app")?;
    let mut builds = loaded.builds;
    if let Some(other) =
        args.services.iter().find(|name| !builds.keys().any(|built| built.as_str() == **name))
    {
        let known: Vec<_> = builds.keys().map(ToString::to_string).collect();
        bail!(hint(
            format!("{} has no service `{other}` with a `build`", spec.name),
            if known.is_empty() {
                "it has none that is built".to_owned()
            } else {
                format!("it has: {}", known.join(", "))
            }
        ));
    }
    if builds.is_empty() {
        out.say("nothing to build: no service has a `build`");
        return Ok(Exit::Done);
    }
    let wanted: BTreeSet<_> = args.services.iter().map(String::as_str).collect();
    builds.retain(|name, _| wanted.is_empty() || wanted.contains(name.as_str()));
    for build in builds.values_mut() {
        for text in &args.build_arg {
            match text.split_once('=') {
                Some((name, value)) => build.options.args.insert(name.to_owned(), value.to_owned()),
                None => env(text).and_then(|value| build.options.args.insert(text.clone(), value)),
            };
        }
    }
    let cluster = Cluster::dial(global).await?;
    let builder = match args.builder {
        Some(Kind::Classic) => v1::Builder::Classic,
        Some(Kind::Buildkit) => v1::Builder::Buildkit,
        None => builder_of_environment(),
    };
    let wishes = Wishes {
        force: true,
        forbid: false,
        no_cache: args.no_cache,
        pull: args.pull,
        node: args.builder_node,
        builder,
    };
    let mut builds = Builds::look(&cluster, &mut spec, builds, wishes, out).await?;
    builds.run(&cluster, out).await?;
    let images = builds.images();
    if out.format == Format::Json {
        out.json(&images)?;
        return Ok(Exit::Done);
    }
    for (service, image) in images {
        let id = image.id.unwrap_or_default();
        let short = id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let on = image.built.and_then(|built| built.by).map(|node| format!(" on {node}")).unwrap_or_default();
        out.say(&format!("{service}: built {} ({short}){on}", image.reference));
    }
    Ok(Exit::Done)
}
