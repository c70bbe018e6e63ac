//! `quota …`: what the tasks of an environment may have together.

use anyhow::{Result, bail};
use http::Method;
use wharf_api::v1;
use wharf_model::{Bytes, Cpus};

use crate::{
    Exit,
    cli::Global,
    connect::{Cluster, query},
    output::{Format, Output},
};

/// Limit what the apps of an environment may have together
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A quota counts what is wanted: as many tasks as services ask for, with what each reserves, or its limit where it reserves nothing.\nA change that asks for more than is left is refused before anything is done; what runs is never stopped by a quota."
)]
pub(crate) struct Quota {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List every environment with what it may have and what it wants
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf quota ls\n  wharf quota ls --format json"
    )]
    Ls,
    /// Set limits of the environment; those that are not named stay
    #[command(
        after_help = "Examples:\n  wharf --env staging quota set --tasks 50 --cpus 8 --memory 16g\n  wharf --env staging quota set --disk none      anything again"
    )]
    Set {
        /// How many tasks; `none` for any number
        #[arg(long, value_name = "N", value_parser = tasks)]
        tasks: Option<Limit<u32>>,
        /// How much processor time: 8, 0.5; `none` for any
        #[arg(long, value_name = "CPUS", value_parser = cpus)]
        cpus: Option<Limit<Cpus>>,
        /// How much memory: 512m, 16g; `none` for any
        #[arg(long, value_name = "SIZE", value_parser = size)]
        memory: Option<Limit<Bytes>>,
        /// How much disk: 100g, 2t; `none` for any
        #[arg(long, value_name = "SIZE", value_parser = size)]
        disk: Option<Limit<Bytes>>,
    },
    /// Lift every limit of the environment
    #[command(after_help = "Examples:\n  wharf --env staging quota rm")]
    Rm,
}

/// So much, or anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit<T> {
    To(T),
    None,
}
impl<T> Limit<T> {
    fn amount(self) -> Option<T> {
        match self {
            Self::To(amount) => Some(amount),
            Self::None => None,
        }
    }
}
fn limit<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Limit<T>, String> {
    if text == "none" { Ok(Limit::None) } else { parse(text).map(Limit::To) }
}
fn tasks(text: &str) -> Result<Limit<u32>, String> {
    limit(text, |text| text.parse().map_err(|_| format!("`{text}` is no number of tasks; `none` is any")))
}
fn cpus(text: &str) -> Result<Limit<Cpus>, String> {
    limit(text, |text| {
        let wrong = || format!("`{text}` is no processor time: write 8 or 0.5; `none` is any");
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        if part.len() > 3 || whole.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let part: u64 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
        whole.checked_mul(1000).and_then(|all| all.checked_add(part)).map(Cpus).ok_or_else(wrong)
    })
}
fn size(text: &str) -> Result<Limit<Bytes>, String> {
    limit(text, |text| {
        let wrong = || format!("`{text}` is no size: write 512m, 16g or 2t; `none` is any");
        let lower = text.to_ascii_lowercase();
        let number = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let shift = match &lower[number.len()..] {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(wrong)
    })
}

pub(crate) async fn run(args: Quota, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let path = format!("/v1/quotas/{}", query(cluster.environment.as_str()));
    match args.verb {
        Verb::Ls => ls(&cluster, out).await,
        Verb::Set { tasks, cpus, memory, disk } => {
            let lifted = [
                (tasks == Some(Limit::None), "tasks"),
                (cpus == Some(Limit::None), "cpus"),
                (memory == Some(Limit::None), "memory"),
                (disk == Some(Limit::None), "disk"),
            ];
            let wish = v1::QuotaChange {
                limits: v1::QuotaLimits {
                    tasks: tasks.and_then(Limit::amount),
                    cpus: cpus.and_then(Limit::amount),
                    memory: memory.and_then(Limit::amount),
                    disk: disk.and_then(Limit::amount),
                },
                lift: lifted.iter().filter(|(lift, _)| *lift).map(|(_, thing)| (*thing).to_owned()).collect(),
            };
            if wish == v1::QuotaChange::default() {
                bail!(crate::Usage("say what to limit: `--tasks`, `--cpus`, `--memory` or `--disk`".into()));
            }
            let quota: v1::Quota = cluster.client.call(Method::PUT, &path, &wish).await?;
            if out.format == Format::Json {
                out.json(&quota)?;
                return Ok(Exit::Done);
            }
            let limits: Vec<_> =
                cells(&quota).into_iter().map(|(what, cell)| format!("{what} {cell}")).collect();
            out.say(&format!("{}: {}", quota.environment, limits.join(", ")));
            for what in beyond(&quota) {
                out.say(&format!(
                    "more {what} than that is wanted already: what runs stays, and nothing may ask for more"
                ));
            }
            Ok(Exit::Done)
        }
        Verb::Rm => {
            let _nothing: Option<()> = cluster.client.call(Method::DELETE, &path, &()).await?;
            out.say(&format!("{} has no quota any more", cluster.environment));
            Ok(Exit::Done)
        }
    }
}

async fn ls(cluster: &Cluster, out: &Output) -> Result<Exit> {
    let quotas: Vec<v1::Quota> = cluster.client.get("/v1/quotas").await?;
    out.list(&quotas, &["ENVIRONMENT", "TASKS", "CPUS", "MEMORY", "DISK"], |quota| {
        let cells = cells(quota).into_iter().map(|(_, cell)| cell);
        std::iter::once(quota.environment.clone()).chain(cells).collect()
    })?;
    if quotas.is_empty() {
        out.say("there is no app yet, and no quota; `wharf --env NAME quota set` sets one");
    }
    Ok(Exit::Done)
}

/// What is wanted of each thing, and of how much: `12 of 50`.
fn cells(quota: &v1::Quota) -> [(&'static str, String); 4] {
    fn cell<T: std::fmt::Display>(wanted: T, limit: Option<T>) -> String {
        limit.map_or_else(|| format!("{wanted}"), |limit| format!("{wanted} of {limit}"))
    }
    let v1::Quota { environment: _, limits, wanted } = quota;
    [
        ("tasks", cell(wanted.tasks, limits.tasks.map(u64::from))),
        ("cpus", cell(wanted.cpus, limits.cpus)),
        ("memory", cell(wanted.memory, limits.memory)),
        ("disk", cell(wanted.disk, limits.disk)),
    ]
}

fn beyond(quota: &v1::Quota) -> Vec<&'static str> {
    let v1::Quota { environment: _, limits, wanted } = quota;
    let things = [
        ("tasks", limits.tasks.is_some_and(|limit| wanted.tasks > u64::from(limit))),
        ("processor time", limits.cpus.is_some_and(|limit| wanted.cpus > limit)),
        ("memory", limits.memory.is_some_and(|limit| wanted.memory > limit)),
        ("disk", limits.disk.is_some_and(|limit| wanted.disk > limit)),
    ];
    things.into_iter().filter(|(_, beyond)| *beyond).map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_amounts_or_none() {
        assert_eq!(tasks("50"), Ok(Limit::To(50)));
        assert_eq!(tasks("none"), Ok(Limit::None));
        assert_eq!(cpus("1.5"), Ok(Limit::To(Cpus(1500))));
        assert_eq!(cpus("8"), Ok(Limit::To(Cpus(8000))));
        assert_eq!(size("1536m"), Ok(Limit::To(Bytes(1536 << 20))));
        assert_eq!(size("2GiB"), Ok(Limit::To(Bytes(2 << 30))));
        for wrong in ["", "x", "-1", "1.0001", ".5"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "g", "1.5g", "12q", "99999999999t"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
