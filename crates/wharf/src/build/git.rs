//! What git says of a folder or repository, where there is a git to ask. No hook of the repository is run, and nothing of it is changed.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use wharf_api::v1;

/// For a question about a folder of this machine.
const HERE: Duration = Duration::from_secs(10);
/// For a question to a repository elsewhere.
const THERE: Duration = Duration::from_secs(20);

/// The commit of a folder, and whether its files differ from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) short: String,
    pub(crate) is_dirty: bool,
}

/// The commit that a folder is at; `None` without git, a repository or a commit that has anything of the folder.
pub(crate) async fn commit(folder: &Path) -> Option<Commit> {
    let folder = folder.to_str()?;
    // A folder that its repository ignores is of no commit.
    ask(&["-C", folder, "ls-tree", "--name-only", "HEAD", "./"], HERE)
        .await
        .filter(|names| !names.is_empty())?;
    let short = ask(&["-C", folder, "rev-parse", "--short=7", "HEAD"], HERE).await?;
    let changed = ask(&["-C", folder, "status", "--porcelain", "--", "."], HERE).await?;
    Some(Commit { short: short.trim().to_owned(), is_dirty: !changed.trim().is_empty() })
}

/// Where the repository of a folder is: commit and branch of the whole, and whether the folder's own files differ. `None` without git, a
/// repository or a commit.
pub(crate) async fn source(folder: &Path) -> Option<v1::GitSource> {
    let folder = folder.to_str()?;
    let commit = ask(&["-C", folder, "rev-parse", "--verify", "HEAD"], HERE).await?.trim().to_owned();
    let branch = ask(&["-C", folder, "symbolic-ref", "--short", "-q", "HEAD"], HERE).await;
    let changed = ask(&["-C", folder, "status", "--porcelain", "--", "."], HERE).await;
    Some(v1::GitSource {
        commit,
        branch: branch.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()),
        dirty: changed.map(|files| !files.trim().is_empty()),
    })
}

/// The commit that a repository elsewhere is at, as an engine would fetch it: `https://…/shop.git#branch:folder`.
pub(crate) async fn remote_commit(address: &str) -> Option<String> {
    let (repository, fragment) = address.split_once('#').unwrap_or((address, ""));
    let reference = fragment.split(':').next().filter(|name| !name.is_empty()).unwrap_or("HEAD");
    if reference.len() == 40 && reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Some(reference.to_owned());
    }
    let repository = match repository.strip_prefix("github.com/") {
        Some(path) => format!("https://github.com/{path}"),
        None => repository.to_owned(),
    };
    if repository.starts_with('-') || reference.starts_with('-') {
        return None;
    }
    let answer = ask(&["ls-remote", &repository, reference], THERE).await?;
    let commit = answer.split_whitespace().next()?;
    (commit.len() >= 40).then(|| commit.to_owned())
}

async fn ask(arguments: &[&str], patience: Duration) -> Option<String> {
    let asking = Command::new("git")
        // Whoever wrote the repository shall not run anything here.
        .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"])
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(patience, asking).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
