//! `rebalance`: tasks move to nodes that have less to do.

use std::time::Duration;

use anyhow::Result;
use http::Method;
use wharf_api::{transport::Client, v1};

use crate::{
    Exit,
    cli::Global,
    commands::{ago, client_name, confirm, token::ttl},
    connect::Cluster,
    output::{Color, Format, Output, rough, table},
};

const PATH: &str = "/v1/rebalance";
/// So many services that stay are named.
const NAMED: usize = 10;

/// Move tasks to machines that have less to do
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Shows which task would move from where to where and why, asks, and then moves one after another: a new task is made on the other\nmachine, and once it serves and everybody is led to it the old one drains and stops. What would be interrupted or lose data stays.\nA machine that joins, comes back or is activated takes its share by itself; see `wharf rebalance default`.\n\nExamples:\n  wharf rebalance --dry-run         only show what would move\n  wharf rebalance -y                do it, and wait\n  wharf rebalance --app shop        the tasks of one app\n  wharf rebalance status            how far it is\n  wharf rebalance cancel            finish what has begun, and begin nothing more\n  wharf rebalance default --automatic off"
)]
pub(crate) struct Rebalance {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Only the tasks of this app of the environment
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Only show what would move
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Return as soon as it is under way
    #[arg(long)]
    detach: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 1800, value_name = "SECONDS", conflicts_with = "detach")]
    timeout: u64,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show what moves, and what moved last
    #[command(after_help = "Examples:\n  wharf rebalance status\n  wharf rebalance status --format json")]
    Status,
    /// Finish the moves that have begun, and begin no more of them
    #[command(after_help = "Examples:\n  wharf rebalance cancel")]
    Cancel,
    /// Show or change what the cluster moves by itself, and how fast anything moves
    #[command(
        after_help = "off: nothing moves by itself. joining: a machine that joins, comes back or is activated takes its share.\nalways: whenever the cluster gets more even by it.\n\nExamples:\n  wharf rebalance default\n  wharf rebalance default --automatic always\n  wharf rebalance default --at-once 4 --per-minute 60 --steady 2m"
    )]
    Default {
        /// When tasks move without being asked to: off, joining or always
        #[arg(long, value_name = "WHEN")]
        automatic: Option<String>,
        /// How many moves are under way at once
        #[arg(long, value_name = "N")]
        at_once: Option<u32>,
        /// How many moves begin in a minute
        #[arg(long, value_name = "N")]
        per_minute: Option<u32>,
        /// How long a machine must have been ready before tasks move to it: 30s, 5m
        #[arg(long, value_name = "TIME", value_parser = ttl)]
        steady: Option<u64>,
    },
}

pub(crate) async fn run(args: Rebalance, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let client = &cluster.client;
    match args.verb {
        Some(Verb::Status) => status(client, out).await,
        Some(Verb::Cancel) => {
            let left: v1::RebalanceStatus = client.call(Method::DELETE, PATH, &()).await?;
            match out.format {
                Format::Json => out.json(&left)?,
                Format::Table => {
                    let begun = left.moving.len();
                    out.say(&format!(
                        "nothing more begins; {} to its end",
                        moves(begun, "move goes", "moves go")
                    ));
                }
            }
            Ok(Exit::Done)
        }
        Some(Verb::Default { automatic, at_once, per_minute, steady }) => {
            let steady = steady.map(|seconds| seconds * 1000);
            let wish = v1::RebalanceSettingsChange { automatic, at_once, per_minute, steady };
            defaults(client, &wish, out).await
        }
        None => {
            let environment = args.app.is_some().then(|| cluster.environment.to_string());
            let wish = v1::RebalanceRequest {
                environment,
                app: args.app,
                dry_run: true,
                fingerprint: None,
                client: client_name(),
            };
            let wait = (!args.detach).then_some(args.timeout);
            rebalance(&cluster, wish, args.dry_run, args.yes, wait, out).await
        }
    }
}

fn moves(count: usize, one: &str, several: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {several}") }
}

async fn rebalance(
    cluster: &Cluster,
    wish: v1::RebalanceRequest,
    only_plan: bool,
    yes: bool,
    wait: Option<u64>,
    out: &Output,
) -> Result<Exit> {
    let plan: v1::RebalancePlan = cluster.client.call(Method::POST, PATH, &wish).await?;
    if only_plan && out.format == Format::Json {
        out.json(&plan)?;
        return Ok(Exit::Done);
    }
    show(&plan, out)?;
    if plan.moves.is_empty() || only_plan {
        return Ok(Exit::Done);
    }
    if !yes && !confirm("Move them?")? {
        out.say("nothing was changed");
        return Ok(Exit::Failed);
    }
    let wish = v1::RebalanceRequest { dry_run: false, fingerprint: Some(plan.fingerprint), ..wish };
    let begun: v1::RebalancePlan = cluster.client.call(Method::POST, PATH, &wish).await?;
    let Some(number) = begun.run else {
        out.say("nothing is left to move");
        return Ok(Exit::Done);
    };
    match wait {
        Some(seconds) => follow(&cluster.client, number, seconds, out).await,
        None => {
            out.say(&format!(
                "rebalancing {number} is under way; `wharf rebalance status` shows how far it is"
            ));
            Ok(Exit::Done)
        }
    }
}

/// What would move, and what comes of it: people look at this before they agree, so it is said to them.
fn show(plan: &v1::RebalancePlan, out: &Output) -> Result<()> {
    if plan.moves.is_empty() {
        out.say("no move would make the cluster more even");
    } else {
        let rows: Vec<_> = plan.moves.iter().map(row).collect();
        for line in table(&["TASK", "ENVIRONMENT", "FROM", "TO", "WHY"], &rows) {
            out.data(&line)?;
        }
        out.data("")?;
        let share = |share: u64| format!("{} %", share / 10);
        let arrow = |before: String, after: String| {
            if before == after { before } else { format!("{before} -> {after}") }
        };
        let nodes = plan.nodes.iter().map(|node| {
            vec![
                node.node.clone(),
                arrow(node.tasks.to_string(), node.tasks_after.to_string()),
                arrow(share(node.reserved), share(node.reserved_after)),
            ]
        });
        for line in table(&["NODE", "TASKS", "RESERVED"], &nodes.collect::<Vec<_>>()) {
            out.data(&line)?;
        }
        if plan.more {
            out.say("there is more to move: run it again afterwards");
        }
    }
    for stays in plan.stays.iter().take(NAMED) {
        out.say(&format!(
            "{} {}/{}: {}",
            out.paint(Color::Dim, "stays"),
            stays.app,
            stays.service,
            stays.why
        ));
    }
    if plan.stays.len() > NAMED {
        out.say(&format!("and {} more services stay; `--format json` has all", plan.stays.len() - NAMED));
    }
    Ok(())
}

fn row(one: &v1::RebalanceMove) -> Vec<String> {
    vec![one.task.clone(), one.environment.clone(), one.from.clone(), one.to.clone(), one.why.clone()]
}

/// Says what happens to each move until the run is over.
async fn follow(client: &Client, number: u64, seconds: u64, out: &Output) -> Result<Exit> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut said: Vec<String> = Vec::new();
    loop {
        let found: v1::RebalanceStatus = client.get(PATH).await?;
        let Some(run) = found.run.filter(|run| run.number == number) else {
            out.must_say("somebody has asked for another rebalancing meanwhile");
            return Ok(Exit::Failed);
        };
        said.resize(run.moves.len(), String::new());
        for (one, said) in run.moves.iter().zip(&mut said) {
            if one.state != *said && one.state != "planned" {
                said.clone_from(&one.state);
                out.say(&progress(one, out));
            }
        }
        if run.ended_at.is_some() {
            if out.format == Format::Json {
                out.json(&run)?;
            }
            let dropped = run.moves.iter().filter(|one| one.state == "dropped").count();
            out.say(&format!(
                "{}{}",
                moves(run.moves.len() - dropped, "task has moved", "tasks have moved"),
                if dropped == 0 { String::new() } else { format!(", {dropped} stayed") }
            ));
            return Ok(if dropped == 0 { Exit::Done } else { Exit::Failed });
        }
        if tokio::time::Instant::now() >= deadline {
            let left = run.moves.iter().filter(|one| one.state == "planned" || one.state == "begun").count();
            out.must_say(&format!("after {seconds} s {} left", moves(left, "move is", "moves are")));
            out.must_say("hint: it goes on; `wharf rebalance status` shows how far it is, `wharf rebalance cancel` ends it");
            return Ok(Exit::NotYet);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn progress(one: &v1::RebalanceMove, out: &Output) -> String {
    match one.state.as_str() {
        "begun" => format!("{} {}: {} -> {}", out.paint(Color::Pending, "moves"), one.task, one.from, one.to),
        "done" => format!("{} {} is on {}", out.paint(Color::Good, "moved"), one.task, one.to),
        _ => {
            let why = one.dropped.as_deref().unwrap_or("no reason was given");
            format!("{} {} on {}: {why}", out.paint(Color::Bad, "stays"), one.task, one.from)
        }
    }
}

async fn status(client: &Client, out: &Output) -> Result<Exit> {
    let found: v1::RebalanceStatus = client.get(PATH).await?;
    if out.format == Format::Json {
        out.json(&found)?;
        return Ok(Exit::Done);
    }
    match &found.run {
        None => out.say("nobody has asked for a rebalancing yet"),
        Some(run) => {
            let rows = run.moves.iter().map(|one| {
                let mut row = row(one);
                row.insert(1, one.state.clone());
                if let Some(dropped) = &one.dropped {
                    row.pop();
                    row.push(format!("stays: {dropped}"));
                }
                row
            });
            for line in
                table(&["TASK", "STATE", "ENVIRONMENT", "FROM", "TO", "WHY"], &rows.collect::<Vec<_>>())
            {
                out.data(&line)?;
            }
            let how = match (&run.ended_at, &run.cancelled_by) {
                (Some(at), _) => format!("was over {} ago", ago(*at)),
                (None, Some(by)) => format!("was cancelled by {by}, and ends with the moves that have begun"),
                (None, None) => "is under way".to_owned(),
            };
            out.say(&format!(
                "rebalancing {} of {}, begun {} ago, {how}",
                run.number,
                run.by,
                ago(run.started_at)
            ));
        }
    }
    for one in &found.moving {
        out.say(&format!("{} ({})", progress(one, out), one.why));
    }
    say_settings(&found.settings, out);
    Ok(Exit::Done)
}

async fn defaults(client: &Client, wish: &v1::RebalanceSettingsChange, out: &Output) -> Result<Exit> {
    let settings = if *wish == v1::RebalanceSettingsChange::default() {
        client.get::<v1::RebalanceStatus>(PATH).await?.settings
    } else {
        client.call(Method::PUT, "/v1/rebalance-defaults", wish).await?
    };
    match out.format {
        Format::Json => out.json(&settings)?,
        Format::Table => {
            out.data(&format!("automatic    {}", settings.automatic))?;
            out.data(&format!("at once      {}", settings.at_once))?;
            out.data(&format!("per minute   {}", settings.per_minute))?;
            out.data(&format!("steady       {}", rough(Duration::from_millis(settings.steady))))?;
        }
    }
    Ok(Exit::Done)
}

fn say_settings(settings: &v1::RebalanceSettings, out: &Output) {
    let when = match settings.automatic.as_str() {
        "off" => "nothing moves by itself",
        "always" => "tasks move by themselves whenever the cluster gets more even by it",
        _ => "a machine that joins, comes back or is activated takes its share by itself",
    };
    out.say(&format!(
        "{when}; {} at once and {} in a minute at most",
        moves(usize::try_from(settings.at_once).unwrap_or(usize::MAX), "move", "moves"),
        settings.per_minute
    ));
}
