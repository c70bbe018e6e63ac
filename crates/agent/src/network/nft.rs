//! Rules of nftables, by the `nft` program: applied as one transaction, and read back for comparison.
//!
//! - A script is applied whole or not at all, and no packet meets a half of it. [`replacing`] makes one that replaces a table whatever
//!   was there.
//! - What the kernel shows is not what was written (it sorts, joins and spells out). So a table is compared with what it looked like
//!   right after it was written: [`Kept`].
//! - Everything here blocks for some milliseconds: a process is started and waited for.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// Those of the calling thread's network namespace.
    Here,
    /// Those of the network namespace with this file, such as a container's `/proc/<pid>/ns/net`.
    #[cfg_attr(not(test), expect(dead_code, reason = "whoever is inside already needs only the other"))]
    At(&'a Path),
}

/// Why rules could not be applied or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    /// The node lacks the program.
    #[error("the program `nft` is missing: install the package `nftables` on this node")]
    Missing,
    /// The program says no.
    #[error("the firewall says: {0}")]
    Refused(String),
    /// The program could not be run.
    #[error("cannot run a firewall program")]
    Run(#[source] io::Error),
    /// The namespace is gone or may not be entered.
    #[error("cannot enter the network namespace {0}")]
    Enter(String, #[source] io::Error),
}

/// Applies a script, whole or not at all.
pub(crate) fn apply(place: Place<'_>, script: &str) -> Result<(), NftError> {
    run(place, &["-f", "-"], script).map(drop)
}

/// A table such as `inet wharf` as the kernel shows it, without counters; none if there is no such table.
pub(crate) fn list(place: Place<'_>, table: &str) -> Result<Option<String>, NftError> {
    let mut arguments = vec!["-s", "-nn", "list", "table"];
    arguments.extend(table.split_whitespace());
    match run(place, &arguments, "") {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused(text)) if text.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The script that makes `table` consist of `body` (chains and sets) whatever was there, in one step.
pub(crate) fn replacing(table: &str, body: &str) -> String {
    format!("table {table}\ndelete table {table}\ntable {table} {{\n{body}\n}}\n")
}

/// The script that removes `table` whether or not it is there.
pub(crate) fn removing(table: &str) -> String {
    format!("table {table}\ndelete table {table}\n")
}

/// A table that is kept as it was written: what others did to it is noticed, and what is right is not touched.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// What was written last, and what the kernel showed right after it.
    written: Option<(String, Option<String>)>,
}

impl Kept {
    /// Makes `table` consist of `body`; without a body the table is removed. Answers whether anything had to be done. The first call of
    /// a process writes: it cannot know what another process meant by what is there.
    pub(crate) fn ensure(
        &mut self,
        place: Place<'_>,
        table: &str,
        body: Option<&str>,
    ) -> Result<bool, NftError> {
        let there = list(place, table)?;
        let Some(body) = body else {
            self.written = None;
            if there.is_some() {
                apply(place, &removing(table))?;
            }
            return Ok(there.is_some());
        };
        if self.written.as_ref().is_some_and(|(wrote, shown)| wrote == body && *shown == there) {
            return Ok(false);
        }
        apply(place, &replacing(table, body))?;
        self.written = Some((body.to_owned(), list(place, table)?));
        Ok(true)
    }
}

fn run(place: Place<'_>, arguments: &[&str], input: &str) -> Result<String, NftError> {
    match place {
        Place::Here => run_here(arguments, input),
        Place::At(path) => inside(path, || run_here(arguments, input))?,
    }
}

/// Does `work` on a thread of the namespace: what it starts is inside as well.
fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NftError> {
    let refused = |error| NftError::Enter(path.display().to_string(), error);
    let file = File::open(path).map_err(refused)?;
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(move || setns(file, CloneFlags::CLONE_NEWNET).map(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    entered.map_err(|error| refused(error.into()))
}

/// Where Debian has it; a service's `PATH` need not.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

fn run_here(arguments: &[&str], input: &str) -> Result<String, NftError> {
    run_program(&PROGRAMS, arguments, input)
}

/// Runs a program, the first of these names that is there, and answers what it wrote.
pub(super) fn run_program(programs: &[&str], arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut found = Err(NftError::Missing);
    for program in programs {
        let command = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match command {
            Ok(child) => {
                found = Ok(child);
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(NftError::Run(error)),
        }
    }
    let mut child = found?;
    // It reads everything before it says anything. If it ends early, what it says tells why.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).find(|line| !line.is_empty());
    Err(NftError::Refused(said.unwrap_or("it failed and does not say why").to_owned()))
}

/// `NFT_MSG_GETGEN` of the nftables subsystem, `NLM_F_REQUEST`.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// The number that every change to any rule of the calling thread's network namespace raises: while it stays, nothing was changed.
pub(crate) fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([0; 12]);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    // A header of 16 bytes, one of 4, and then the first attribute: the number.
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let number = answer.get(24..28).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    match (kind, number) {
        (Some(NEW_GENERATION), Some(number)) => Ok(number),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "nftables did not tell its generation")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of a namespace of its own; not at all without the right to make one.
    fn in_a_namespace(work: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let done = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(CloneFlags::CLONE_NEWNET).expect("root may");
                work();
            });
            thread.join()
        });
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    }

    const BODY: &str =
        "chain c { type filter hook forward priority -5; ip saddr 10.0.0.0/8 tcp dport 80 drop; }";

    #[test]
    fn a_table_is_written_once_and_again_when_somebody_changed_it() {
        in_a_namespace(|| {
            let (mut kept, table) = (Kept::default(), "inet wharf_test");
            assert!(kept.ensure(Place::Here, table, Some(BODY)).unwrap());
            let before = generation().unwrap();
            assert!(!kept.ensure(Place::Here, table, Some(BODY)).unwrap(), "it is right");
            assert_eq!(generation().unwrap(), before, "and was not touched");
            for damage in
                ["flush ruleset", "flush chain inet wharf_test c", "add chain inet wharf_test other"]
            {
                apply(Place::Here, damage).unwrap();
                assert_ne!(generation().unwrap(), before);
                assert!(kept.ensure(Place::Here, table, Some(BODY)).unwrap(), "{damage}");
                assert!(!kept.ensure(Place::Here, table, Some(BODY)).unwrap(), "{damage}");
            }
            assert!(kept.ensure(Place::Here, table, None).unwrap());
            assert!(!kept.ensure(Place::Here, table, None).unwrap());
            assert_eq!(list(Place::Here, table).unwrap(), None);
        });
    }

    #[test]
    fn another_namespace_is_reached_by_its_file_and_what_is_wrong_is_told() {
        in_a_namespace(|| {
            let other = format!("/proc/{}/ns/net", std::process::id());
            let error = apply(Place::Here, "add rule inet none none drop").unwrap_err();
            assert!(matches!(&error, NftError::Refused(text) if text.contains("No such file")), "{error}");
            let error = list(Place::At(Path::new("/proc/1/ns/none")), "inet x").unwrap_err();
            assert!(matches!(error, NftError::Enter(..)), "{error}");
            assert_eq!(list(Place::At(Path::new(&other)), "inet wharf_nobody_has_this").unwrap(), None);
        });
    }
}
