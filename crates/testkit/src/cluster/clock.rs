//! A time of day for programs of one node that can be set, as an administrator or NTP does, while the machine's stays as it is.
//!
//! - The kernel has one time of day for all: so a library stands between a program and the kernel. It reaches programs that are linked
//!   dynamically, which tests are told ([`is_possible`]); engines have the machine's time of day.
//! - Only the time of day is set: what measures time that passes is not touched.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::node::Node;
use super::process::run;

const SOURCE: &str = include_str!("clock.c");
/// As seen from the host, in a node's directory; in the node that is `/run/testbed`.
const LIBRARY: &str = "clock.so";
const STEP: &str = "clock.step";

/// The direction in which a clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Later than it is.
    Ahead(Duration),
    /// Earlier than it is.
    Back(Duration),
    /// As the machine has it.
    Right,
}

/// Whether a program's clock can be set: one that is linked statically asks the kernel itself.
pub fn is_possible(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // The dynamic linker's path is in the program's text, before anything else of it.
    let head = &bytes[..bytes.len().min(4096)];
    Ok(head.windows(b"ld-linux".len()).any(|window| window == b"ld-linux"))
}

/// Makes the library and a clock that is right, and gives what stands in front of a program of this node so that it goes by it.
pub(crate) fn wind(node: &Node) -> Result<[String; 3]> {
    let dir = node.dir();
    let source = dir.join("clock.c");
    fs::write(&source, SOURCE)?;
    let flags = ["-shared", "-fPIC", "-O1", "-o"].map(std::ffi::OsStr::new);
    let library = dir.join(LIBRARY);
    run("gcc", flags.into_iter().chain([library.as_os_str(), source.as_os_str()]))
        .context("cannot compile the clock (Debian: gcc, libc6-dev)")?;
    fs::write(dir.join(STEP), 0_i64.to_ne_bytes())?;
    Ok([
        "env".to_owned(),
        format!("LD_PRELOAD=/run/testbed/{LIBRARY}"),
        format!("CLOCK_STEP=/run/testbed/{STEP}"),
    ])
}

/// Sets the clock of a node's programs that were started with it.
pub(crate) fn set(node: &Node, step: Step) -> Result<()> {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let off = match step {
        Step::Ahead(by) => seconds(by),
        Step::Back(by) => -seconds(by),
        Step::Right => 0,
    };
    let path = node.dir().join(STEP);
    ensure!(path.exists(), "no program of {} goes by a clock that can be set", node.name());
    // In place, and at once: programs have it mapped.
    fs::OpenOptions::new().write(true).open(path)?.write_all_at(&off.to_ne_bytes(), 0)?;
    Ok(())
}
