//! `config`: the normal form of the Compose files, or what of it was asked for.

use anyhow::{Context as _, Result, bail};
use wharf_compose::{self as compose, Project};

use crate::{
    Exit,
    cli::{Files, Format, Global},
    output::Output,
    project,
};

/// Check and print the normalised Compose file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints what the files say once they are merged, with variables put in and short forms written out, as `docker compose config` does:\nYAML, or JSON with `--format json`. Needs no cluster. With `-q` it prints nothing and only checks.\n\nExamples:\n  wharf config -f compose.yaml -f prod.yaml\n  wharf config --check                 what a cluster could not honour, all at once\n  wharf config --services\n  wharf config --format json web db    these services and what they depend on\n  cat compose.yaml | wharf -f - config -q"
)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    part: Part,
    /// Leave variables as they are written
    #[arg(long)]
    no_interpolate: bool,
    /// Leave out what is understood
    #[arg(long)]
    no_normalize: bool,
    /// Leave relative paths relative
    #[arg(long)]
    no_path_resolution: bool,
    /// Do not look for contradictions
    #[arg(long)]
    no_consistency: bool,
    /// Leave `env_file` as it is written
    #[arg(long)]
    no_env_resolution: bool,
    /// Write to this file
    #[arg(long, short, value_name = "FILE")]
    output: Option<std::path::PathBuf>,
    /// With `--check`: print a warning instead of refusing keys that a cluster cannot honour
    #[arg(long, requires = "check")]
    allow_unsupported: bool,
    /// These services and what they depend on; all if none is named
    #[arg(value_name = "SERVICE")]
    only: Vec<String>,
}

/// What to print instead of the whole.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags, of which one may be given")]
struct Part {
    /// Print complaints only, also about what a cluster cannot honour
    #[arg(long)]
    check: bool,
    /// Print the names of services
    #[arg(long)]
    services: bool,
    /// Print the images of services
    #[arg(long)]
    images: bool,
    /// Print the names of volumes
    #[arg(long)]
    volumes: bool,
    /// Print the names of networks
    #[arg(long)]
    networks: bool,
    /// Print the names of models
    #[arg(long)]
    models: bool,
    /// Print the names of profiles
    #[arg(long)]
    profiles: bool,
    /// Print the variables that can be put in
    #[arg(long = "environment")]
    variables: bool,
    /// Print a digest of each of these services, which changes when its containers would have to be replaced; `*` for all
    #[arg(long, value_name = "SERVICES", value_delimiter = ',')]
    hash: Vec<String>,
}

pub(crate) fn run(args: &Config, global: &Global, out: &Output) -> Result<Exit> {
    let json = global.format == Some(Format::Json);
    if args.part.check {
        return check(args, out);
    }
    let mut sources = project::sources(&args.files)?;
    let request = &mut sources.request;
    request.services.clone_from(&args.only);
    request.no_interpolate = args.no_interpolate;
    request.no_normalize = args.no_normalize;
    request.no_path_resolution = args.no_path_resolution;
    request.no_consistency = args.no_consistency;
    request.no_env_resolution = args.no_env_resolution;
    let projected = compose::project(&sources.request, &sources.disk);
    sources.complain(&projected.diagnostics, out).end("")?;
    let project = projected.project.context("the Compose file defines nothing")?;
    let text = match part(&args.part, &project)? {
        Some(lines) if json => format!("{:#}\n", serde_json::Value::from(lines)),
        Some(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
        None if json => format!("{:#}\n", project.to_json()),
        None => project.to_yaml(),
    };
    match &args.output {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None if out.quiet => {}
        None => out.data(text.trim_end_matches('\n'))?,
    }
    Ok(Exit::Done)
}

/// The lines that were asked for, if it is not the whole.
fn part(part: &Part, project: &Project) -> Result<Option<Vec<String>>> {
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    Ok(Some(if part.services {
        owned(project.services())
    } else if part.images {
        project.images()
    } else if part.volumes {
        owned(project.volumes())
    } else if part.networks {
        owned(project.networks())
    } else if part.models {
        owned(project.models())
    } else if part.profiles {
        project.profiles()
    } else if part.variables {
        project.environment().iter().map(|(name, value)| format!("{name}={value}")).collect()
    } else if !part.hash.is_empty() {
        hashes(&part.hash, project)?
    } else {
        return Ok(None);
    }))
}

/// `SERVICE DIGEST`, by name.
fn hashes(wanted: &[String], project: &Project) -> Result<Vec<String>> {
    let all = wanted.iter().any(|name| name == "*");
    let mut names = if all { project.services() } else { wanted.iter().map(String::as_str).collect() };
    names.sort_unstable();
    let line = |name: &str| match project.hash(name) {
        Some(hash) => Ok(format!("{name} {hash}")),
        None => bail!(crate::hint(
            format!("there is no active service `{name}`"),
            format!("there are: {}", project.services().join(", "))
        )),
    };
    names.into_iter().map(line).collect()
}

/// Complains about everything, also about what only a cluster cannot do.
fn check(args: &Config, out: &Output) -> Result<Exit> {
    let mut sources = project::sources(&args.files)?;
    sources.request.allow_unsupported = args.allow_unsupported;
    let loaded = compose::load(&sources.request, &sources.disk);
    sources.complain(&loaded.diagnostics, out).end("")?;
    let spec = loaded.app.context("the Compose file defines no app")?;
    let services = match spec.services.len() {
        1 => "1 service".to_owned(),
        count => format!("{count} services"),
    };
    out.say(&format!("{} is in order: {services}", spec.name));
    Ok(Exit::Done)
}
