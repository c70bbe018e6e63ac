//! `completion`: scripts that complete command lines.

use anyhow::Result;
use clap::CommandFactory as _;

use crate::{Exit, cli::Cli, output::Output};

/// Shells there are scripts for.
pub(crate) type Shell = clap_complete::Shell;

pub(crate) fn run(shell: Shell, out: &Output) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut script);
    out.data(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Done)
}
