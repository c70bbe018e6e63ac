//! `app …`: apps and their releases.

use anyhow::Result;
use wharf_api::v1;
use wharf_model::AppName;

use crate::{
    Exit, Usage,
    cli::{Files, Global},
    commands::ago,
    connect::{Cluster, app_path, query},
    output::{Format, Output},
    project,
};

/// How many characters of what a release changed are shown in a list.
const SUMMARY: usize = 72;

/// Which app is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    #[command(flatten)]
    pub(crate) files: Files,
    /// The app [default: that of the Compose file of this folder]
    app: Option<String>,
}
impl Which {
    /// Its name.
    pub(crate) fn name(&self, out: &Output) -> Result<AppName> {
        match &self.app {
            Some(name) => Ok(name.parse()?),
            None => project::app_name(&self.files, out),
        }
    }
}

/// Look at apps and their releases
#[derive(Debug, clap::Args)]
pub(crate) struct App {
    #[command(subcommand)]
    verb: Verb,
}

impl App {
    /// The flags that say which files, of verbs that read any.
    pub(crate) fn files(&mut self) -> Option<&mut Files> {
        match &mut self.verb {
            Verb::Ls { .. } => None,
            Verb::Inspect { which, .. } | Verb::History { which, .. } => Some(&mut which.files),
            Verb::Diff { files, .. } => Some(files),
        }
    }
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the apps of an environment, or of all
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf app ls\n  wharf app ls --all --format json"
    )]
    Ls {
        /// Of all environments
        #[arg(long, short)]
        all: bool,
    },
    /// Show everything known of an app, or of one of its releases
    #[command(
        after_help = "Secrets are named by a digest that says nothing of their content.\n\nExamples:\n  wharf app inspect shop\n  wharf app inspect shop --env staging\n  wharf app inspect shop --release 3     the normalised app of then, with its images"
    )]
    Inspect {
        #[command(flatten)]
        which: Which,
        /// Of this release
        #[arg(long, value_name = "NUMBER")]
        release: Option<u64>,
    },
    /// List the releases of an app, newest first: who made them, of what, and how they ended
    #[command(
        after_help = "A release keeps its number and how it ended. The latest 50 are kept, and those that are in use.\n\nExamples:\n  wharf app history shop\n  wharf app history --limit 5 --format json\n  wharf app diff shop 3 5            what differs between two of them"
    )]
    History {
        #[command(flatten)]
        which: Which,
        /// So many of them
        #[arg(long, short = 'n', value_name = "NUMBER")]
        limit: Option<usize>,
        /// Print the normalised app of this release
        #[arg(long, value_name = "NUMBER", hide = true)]
        show: Option<u64>,
    },
    /// Show what differs between two releases of an app, by key and without values
    #[command(
        override_usage = "wharf app diff [OPTIONS] [APP] <FROM> [TO]",
        after_help = "Examples:\n  wharf app diff 3 5\n  wharf app diff shop 3            from release 3 to the present one"
    )]
    Diff {
        #[command(flatten)]
        files: Files,
        /// The app [default: that of the Compose file of this folder], and the numbers of one or two releases
        #[arg(required = true, num_args = 1..=3, value_name = "APP, FROM, TO")]
        releases: Vec<String>,
    },
}

pub(crate) async fn run(args: App, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls { all } => {
            let path = if all {
                "/v1/apps".to_owned()
            } else {
                format!("/v1/apps?environment={}", query(cluster.environment.as_str()))
            };
            let apps: Vec<v1::App> = cluster.client.get(&path).await?;
            out.list(
                &apps,
                &["ENVIRONMENT", "NAME", "RELEASE", "STATE", "READY", "SERVICES", "CHANGED"],
                |app| {
                    vec![
                        app.environment.clone(),
                        app.name.clone(),
                        app.release.to_string(),
                        app.rollout.state.replace('_', " "),
                        format!("{}/{}", app.ready, app.wanted),
                        app.services.to_string(),
                        format!("{} ago", ago(app.rollout.started_at)),
                    ]
                },
            )?;
            if apps.is_empty() {
                out.say(&format!(
                    "there are no apps in environment `{}`; `wharf up` deploys one",
                    cluster.environment
                ));
            }
        }
        Verb::Inspect { which, release } => {
            let key = cluster.app(which.name(out)?);
            match release {
                Some(number) => show(&cluster, &key, number, out).await?,
                None => {
                    let status: v1::AppStatus = cluster.client.get(&app_path(&key, "?spec=true")).await?;
                    out.json(&status)?;
                }
            }
        }
        Verb::History { which, limit, show: shown } => {
            let key = cluster.app(which.name(out)?);
            if let Some(number) = shown {
                show(&cluster, &key, number, out).await?;
            } else {
                let limit = limit.map(|limit| format!("?limit={limit}")).unwrap_or_default();
                let path = app_path(&key, &format!("/releases{limit}"));
                history(&cluster.client.get::<Vec<v1::Release>>(&path).await?, out)?;
            }
        }
        Verb::Diff { files, releases } => {
            let (app, from, to) = between(&releases)?;
            let name = match app {
                Some(name) => name.parse()?,
                None => project::app_name(&files, out)?,
            };
            let key = cluster.app(name);
            let to = match to {
                Some(to) => to,
                None => cluster.client.get::<v1::AppStatus>(&app_path(&key, "")).await?.app.release,
            };
            let path = app_path(&key, &format!("/releases/{from}/diff/{to}"));
            diff(&key.name, &cluster.client.get(&path).await?, out)?;
        }
    }
    Ok(Exit::Done)
}

async fn show(cluster: &Cluster, key: &wharf_model::AppKey, number: u64, out: &Output) -> Result<()> {
    let release: v1::Release = cluster.client.get(&app_path(key, &format!("/releases/{number}"))).await?;
    out.json(&release)
}

/// What `diff` was given: an app, if the first is no number, and one or two releases.
fn between(given: &[String]) -> Result<(Option<&str>, u64, Option<u64>)> {
    let number = |text: &String| text.parse::<u64>().ok();
    let usage = || {
        Usage("say which releases: `wharf app diff [APP] FROM [TO]`, for example `wharf app diff 3 5`".into())
    };
    let numbers: Option<Vec<u64>> = given.iter().map(number).collect();
    let (app, numbers) = match (numbers, given) {
        // Of three numbers the first names the app.
        (Some(numbers), [app, _, _]) => (Some(app.as_str()), numbers[1..].to_vec()),
        (Some(numbers), _) => (None, numbers),
        (None, [app, rest @ ..]) => {
            (Some(app.as_str()), rest.iter().map(number).collect::<Option<_>>().ok_or_else(usage)?)
        }
        (None, []) => (None, Vec::new()),
    };
    match numbers.as_slice() {
        [from] => Ok((app, *from, None)),
        [from, to] => Ok((app, *from, Some(*to))),
        _ => Err(usage().into()),
    }
}

fn diff(app: &AppName, diff: &v1::ReleaseDiff, out: &Output) -> Result<()> {
    if out.format == Format::Json {
        return out.json(diff);
    }
    let (from, to) = (diff.from, diff.to);
    if diff.operations.is_empty() {
        out.say(&format!("releases {from} and {to} of {app} are the same"));
        return Ok(());
    }
    out.say(&format!("from release {from} of {app} to release {to}:"));
    let width = diff.operations.iter().map(|operation| operation.name.chars().count()).max().unwrap_or(0);
    for operation in &diff.operations {
        let v1::Operation { change, kind, name, reason } = operation;
        out.data(format!("{} {kind:<8} {name:<width$}  {reason}", change.symbol()).trim_end())?;
    }
    Ok(())
}

fn history(releases: &[v1::Release], out: &Output) -> Result<()> {
    if out.format == Format::Json {
        return out.json(&releases);
    }
    out.list(
        releases,
        &["RELEASE", "STATE", "CREATED", "BY", "COMMIT", "STRATEGY", "CHANGES", "NOTE"],
        |release| {
            let number = match (release.current, release.rollback_of) {
                (true, Some(of)) => format!("{} (current, back to {of})", release.number),
                (true, None) => format!("{} (current)", release.number),
                (false, Some(of)) => format!("{} (back to {of})", release.number),
                (false, None) => release.number.to_string(),
            };
            vec![
                number,
                release.state.replace('_', " "),
                format!("{} ago", ago(release.created_at)),
                release.by.clone(),
                release.source.as_ref().map(commit).unwrap_or_default(),
                release.strategy.clone(),
                release.changes.as_deref().map(summary).unwrap_or_default(),
                note(release),
            ]
        },
    )
}

/// `0a1b2c3+ (main)`: seven digits are enough to tell commits apart by eye; `+` if files differed from it.
fn commit(source: &v1::GitSource) -> String {
    let short: String = source.commit.chars().take(7).collect();
    let dirty = if source.dirty == Some(true) { "+" } else { "" };
    let branch = source.branch.as_ref().map(|branch| format!(" ({branch})")).unwrap_or_default();
    format!("{short}{dirty}{branch}")
}

/// What a release changed, in short: `web: image web:1 -> web:2; +db`.
fn summary(changes: &[v1::Operation]) -> String {
    let said = changes.iter().filter_map(|change| match change.change {
        v1::Change::Keep => None,
        v1::Change::Create => Some(format!("+{}", change.name)),
        v1::Change::Remove => Some(format!("-{}", change.name)),
        v1::Change::Update | v1::Change::Replace => {
            let kind = if change.kind == "service" { String::new() } else { format!("{} ", change.kind) };
            Some(format!("{kind}{}: {}", change.name, change.reason))
        }
    });
    let said = said.collect::<Vec<_>>().join("; ");
    if said.chars().count() <= SUMMARY {
        return said;
    }
    let cut: String = said.chars().take(SUMMARY - 1).collect();
    format!("{}…", cut.trim_end())
}

/// What its maker said of a release, and why it is not done.
fn note(release: &v1::Release) -> String {
    let message = release.message.as_deref().and_then(|text| text.lines().next()).unwrap_or_default();
    let reason = if release.state == "done" { "" } else { release.reason.as_str() };
    [message, reason].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_is_between_two_releases_or_up_to_the_present_one() {
        let read = |line: &str| {
            let given: Vec<_> = line.split(' ').map(str::to_owned).collect();
            between(&given).map(|(app, from, to)| (app.map(str::to_owned), from, to)).ok()
        };
        assert_eq!(read("3 5"), Some((None, 3, Some(5))));
        assert_eq!(read("3"), Some((None, 3, None)));
        assert_eq!(read("shop 3 5"), Some((Some("shop".into()), 3, Some(5))));
        assert_eq!(read("shop 3"), Some((Some("shop".into()), 3, None)));
        assert_eq!(read("7 3 5"), Some((Some("7".into()), 3, Some(5))));
        for wrong in ["shop", "shop three", "3 shop", "3 5 shop"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_a_release_changed_fits_into_a_line() {
        let change = |change, kind: &str, name: &str, reason: &str| v1::Operation {
            change,
            kind: kind.into(),
            name: name.into(),
            reason: reason.into(),
        };
        let few = [
            change(v1::Change::Create, "service", "db", "image db:1"),
            change(v1::Change::Replace, "service", "web", "image web:1 -> web:2"),
            change(v1::Change::Update, "secret", "key", "version 1 -> 2"),
            change(v1::Change::Remove, "volume", "old", ""),
        ];
        assert_eq!(summary(&few), "+db; web: image web:1 -> web:2; secret key: version 1 -> 2; -old");
        let many: Vec<_> =
            (0..40).map(|n| change(v1::Change::Create, "service", &format!("s{n}"), "")).collect();
        assert_eq!(summary(&many).chars().count(), SUMMARY);
        assert!(summary(&many).ends_with('…'));
    }

    #[test]
    fn a_commit_is_short_and_says_whether_it_is_all_there_is() {
        let source = |branch: Option<&str>, dirty| v1::GitSource {
            commit: "0a1b2c3d4e5f".into(),
            branch: branch.map(Into::into),
            dirty,
        };
        assert_eq!(commit(&source(Some("main"), Some(true))), "0a1b2c3+ (main)");
        assert_eq!(commit(&source(None, None)), "0a1b2c3");
    }
}
