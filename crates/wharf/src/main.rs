//! The one executable: the command line, and the roles it can run as.

mod build;
mod cli;
mod commands;
mod connect;
mod context;
mod machine;
mod output;
mod project;
mod roles;

use std::{fmt, process::ExitCode};

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How a command ended; its number is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The outcome is there.
    Done,
    /// It was refused, or it failed; this has been said.
    Failed,
    /// The command did its part, and the cluster has not caught up.
    NotYet,
    /// As a program that was run elsewhere exited.
    Code(u8),
}

/// An error with what to do about it.
#[derive(Debug)]
pub(crate) struct Hinted {
    message: String,
    hint: String,
}
impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Hinted {}

/// An error with what to do about it.
pub(crate) fn hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted { message: message.into(), hint: hint.into() })
}

/// The reader of our output went away (`wharf logs | head`).
#[derive(Debug)]
pub(crate) struct GoneReader;
impl fmt::Display for GoneReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}
impl std::error::Error for GoneReader {}
impl GoneReader {
    pub(crate) fn or(error: std::io::Error) -> anyhow::Error {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => anyhow::Error::new(Self),
            _ => anyhow::Error::new(error).context("cannot write the output"),
        }
    }
}

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let mut builder = if cli.command.is_companion() {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = match builder.worker_threads(workers()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report(&anyhow::Error::new(error).context("cannot start"));
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(commands::run(cli));
    // What still reads standard input on a thread of its own must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Failed) => ExitCode::from(1),
        Ok(Exit::NotYet) => ExitCode::from(3),
        Ok(Exit::Code(code)) => ExitCode::from(code),
        Err(error) if error.is::<GoneReader>() => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Wrong usage that only shows once the arguments are looked at together.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Usage {}

/// A control plane and its agents mostly wait: a few threads are enough, whatever the machine has.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}

/// Says what went wrong, from the outside in, and what to do about it.
fn report(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A cause that the sentence before already quotes says nothing new.
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    let out = output::Output::new(output::Format::Table, false, true);
    out.must_say(&format!("error: {text}"));
    let hint = error.chain().find_map(|cause| {
        cause
            .downcast_ref::<Hinted>()
            .map(|hinted| hinted.hint.clone())
            .or_else(|| {
                cause.downcast_ref::<wharf_api::transport::CallError>().and_then(|error| error.hint())
            })
            .or_else(|| {
                cause.downcast_ref::<wharf_api::transport::DialError>().and_then(|error| error.hint())
            })
    });
    if let Some(hint) = hint {
        out.must_say(&format!("hint: {hint}"));
    }
}
