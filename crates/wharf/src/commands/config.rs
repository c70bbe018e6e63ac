//! `config`: the normalised Compose file.

use anyhow::Result;

use super::up;
use crate::{
    Exit,
    cli::{Files, Global},
    output::Output,
};

/// Check and print the normalised Compose file
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints what a release is made of, as JSON. Needs no cluster.\n\nExamples:\n  wharf config -f compose.yaml\n  wharf config --check       complaints only"
)]
pub(crate) struct Config {
    #[command(flatten)]
    files: Files,
    /// Print complaints only
    #[arg(long)]
    check: bool,
    /// Print a warning instead of refusing keys that a cluster cannot honour
    #[arg(long)]
    allow_unsupported: bool,
}

pub(crate) fn run(args: &Config, _global: &Global, out: &Output) -> Result<Exit> {
    let spec = up::load(&args.files, args.allow_unsupported, out)?;
    if args.check {
        out.say(&format!("{} is in order: {} service(s)", spec.name, spec.services.len()));
    } else {
        out.json(&spec)?;
    }
    Ok(Exit::Done)
}
