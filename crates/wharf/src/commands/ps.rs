//! `ps`: the tasks of an app.

use anyhow::Result;
use wharf_api::v1;

use crate::{
    Exit,
    cli::{Files, Global},
    commands::ago,
    connect::{Cluster, app_path, query},
    output::{Color, Format, Output},
};

/// Show the tasks of an app: where they are and how they are
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  wharf ps                  the app of this folder\n  wharf ps -p shop web      one service of app `shop`\n  wharf ps --all            every app of the environment\n  wharf ps --node worker-1  what runs on a machine"
)]
pub(crate) struct Ps {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Of every app of the environment, ended tasks too
    #[arg(long, short)]
    all: bool,
    /// On this machine only, of every app and environment
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Of these services only
    services: Vec<String>,
}

pub(crate) async fn run(args: Ps, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    if args.all || args.node.is_some() {
        let mut path = format!("/v1/tasks?all={}", args.all);
        match &args.node {
            Some(node) => path.push_str(&format!("&node={}", query(node))),
            None => path.push_str(&format!("&environment={}", query(cluster.environment.as_str()))),
        }
        let tasks: Vec<v1::Task> = cluster.client.get(&path).await?;
        print(&tasks, out)?;
        return Ok(Exit::Done);
    }
    let key = cluster.app(crate::project::app_name(&args.files, out)?);
    let status: v1::AppStatus = cluster.client.get(&app_path(&key, "")).await?;
    let services: Vec<_> = status
        .services
        .iter()
        .filter(|service| args.services.is_empty() || args.services.contains(&service.name))
        .collect();
    for wanted in &args.services {
        let outside = status.externals.iter().any(|external| external.name == *wanted);
        if !outside && !status.services.iter().any(|service| service.name == *wanted) {
            let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
            anyhow::bail!(crate::hint(
                format!("app {} has no service `{wanted}`", key.name),
                format!("it has: {}", names.join(", "))
            ));
        }
    }
    let tasks: Vec<_> = services.iter().flat_map(|service| service.tasks.clone()).collect();
    print(&tasks, out)?;
    if out.format == Format::Table {
        for service in services {
            if service.stopped {
                out.say(&format!("{} is stopped; `wharf start {}` starts it", service.name, service.name));
            }
            for waiting in &service.waiting {
                out.say(&format!("{}: {waiting}", out.paint(Color::Pending, "waiting")));
            }
        }
        let shown = |name: &String| args.services.is_empty() || args.services.contains(name);
        for external in status.externals.iter().filter(|external| shown(&external.name)) {
            let ports: String = external.ports.iter().map(|port| format!(" {port}")).collect();
            let ports = if ports.is_empty() { ports } else { format!(", port{ports}") };
            out.say(&format!("{} runs outside the cluster, at {}{ports}", external.name, external.host));
        }
        if status.app.rollout.state == "failed" || status.app.rollout.state == "rolled_back" {
            out.say(&format!(
                "{}: {} {}: {}",
                out.paint(Color::Bad, "rollout"),
                status.app.rollout.what,
                status.app.rollout.state.replace('_', " "),
                status.app.rollout.reason
            ));
        }
    }
    Ok(Exit::Done)
}

fn print(tasks: &[v1::Task], out: &Output) -> Result<()> {
    out.list(tasks, &["TASK", "SERVICE", "NODE", "STATE", "SINCE", "RELEASE", "IMAGE", "ADDRESS"], |task| {
        let status = &task.status;
        let since =
            status.ended_at.or(status.ready_at).or(status.started_at).map_or(task.created_at, |at| at.0);
        vec![
            task.name.clone(),
            task.service.clone(),
            task.node.clone().unwrap_or_else(|| "-".into()),
            state(task),
            ago(since),
            task.release.to_string(),
            task.image.clone(),
            task.addresses.values().cloned().collect::<Vec<_>>().join(","),
        ]
    })
}

/// How a task is, in a word or two.
pub(crate) fn state(task: &v1::Task) -> String {
    use wharf_model::{Health, Phase};
    let status = &task.status;
    let away = task.node_state.as_deref().filter(|state| matches!(*state, "unreachable" | "down" | "gone"));
    if let Some(away) = away.filter(|_| !status.phase.is_over()) {
        return format!("unknown (node {away})");
    }
    match (status.phase, status.health) {
        (Phase::Running, _) if task.draining.is_some() => "draining".into(),
        (Phase::Running, _) if task.stop.is_some() => "stopping".into(),
        (Phase::Running, Health::Unchecked) => "running".into(),
        (Phase::Running, Health::Starting) => "starting".into(),
        (Phase::Running, health) => health.to_string(),
        (Phase::Failed, _) if task.crash_loop.is_some() => match status.exit {
            Some(exit) => format!("crash loop ({exit})"),
            None => "crash loop".into(),
        },
        (Phase::Failed | Phase::Complete | Phase::Stopped, _) => match status.exit {
            Some(exit) if !exit.is_success() => format!("{} ({exit})", status.phase),
            _ => status.phase.to_string(),
        },
        (phase, _) => phase.to_string(),
    }
}
