//! `explain`: why tasks are where they are, or are not.

use anyhow::{Result, bail};
use wharf_api::v1;

use crate::{
    Exit,
    cli::{Files, Global},
    commands::ago,
    connect::{Cluster, app_path, is_not_found, query},
    hint,
    output::{Color, Format, Output},
};

/// So many nodes are named that would take a task without a rule, and the others counted.
const NAMED: usize = 5;

/// Show why tasks are where they are, or why they are not
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For a task without a place: each rule with the number of machines that refuse it, and the smallest change that would help.\n\nExamples:\n  wharf explain                  every service of the app of this folder\n  wharf explain web              one service of it\n  wharf explain shop/web         one of another app of the environment\n  wharf explain shop-web-2       one task\n  wharf explain shop/web --format json"
)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) files: Files,
    /// A service, `APP/SERVICE`, or a task
    names: Vec<String>,
}

pub(crate) async fn run(args: Explain, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    let mut found: Vec<v1::Explanation> = Vec::new();
    if args.names.is_empty() {
        let key = cluster.app(crate::project::app_name(&args.files, out)?);
        found.push(cluster.client.get(&app_path(&key, "/explain")).await?);
    }
    for name in &args.names {
        found.push(look(&cluster, &args.files, name, out).await?);
    }
    match out.format {
        Format::Json => out.json(&found)?,
        Format::Table => {
            for explanation in &found {
                show(explanation, out)?;
            }
        }
    }
    Ok(Exit::Done)
}

/// A task or a service of this name.
async fn look(cluster: &Cluster, files: &Files, name: &str, out: &Output) -> Result<v1::Explanation> {
    let service = |key: &wharf_model::AppKey, service: &str| {
        app_path(key, &format!("/explain?service={}", query(service)))
    };
    if let Some((app, of_it)) = name.split_once('/') {
        return Ok(cluster.client.get(&service(&cluster.app(app.parse()?), of_it)).await?);
    }
    match cluster.client.get(&format!("/v1/tasks/{}/explain", query(name))).await {
        Err(error) if is_not_found(&error) => {}
        answer => return Ok(answer?),
    }
    let Ok(app) = crate::project::app_name(files, out) else {
        bail!(hint(
            format!("there is no task `{name}`"),
            "name a service as APP/SERVICE, or go to the folder of its Compose file; `wharf ps --all` lists tasks"
        ));
    };
    Ok(cluster.client.get(&service(&cluster.app(app), name)).await?)
}

fn show(explanation: &v1::Explanation, out: &Output) -> Result<()> {
    for slot in &explanation.slots {
        let place = match (&slot.node, &slot.state, slot.since) {
            (Some(node), Some(state), Some(since)) => format!("on {node}, {state}, for {}", ago(since)),
            _ => out.paint(Color::Bad, "without a place"),
        };
        out.data(&format!("{}  {place}", out.paint(Color::Strong, &slot.slot)))?;
        lines(slot, out)?;
    }
    for waiting in &explanation.waiting {
        out.data(&format!("{}: {waiting}", out.paint(Color::Pending, "waiting")))?;
    }
    if explanation.slots.is_empty() && explanation.waiting.is_empty() {
        out.say(&format!("{} wants no tasks", explanation.app));
    }
    Ok(())
}

fn lines(slot: &v1::SlotExplained, out: &Output) -> Result<()> {
    for sentence in &slot.why {
        out.data(&format!("  {sentence}"))?;
    }
    if let Some(pinned) = &slot.pinned {
        out.data(&format!("  it {pinned}"))?;
    }
    if let (Some(_), Some(decided), Some(other)) = (&slot.chosen, &slot.decided_by, &slot.runner_up) {
        let outdone = match slot.outdone {
            true => format!("{} would be chosen today", other.node),
            false => format!("next best is {}", other.node),
        };
        out.data(&format!("  {} ({}): {decided}", outdone, slot.strategy))?;
    }
    for waiting in &slot.waiting {
        out.data(&format!("  {}: {waiting}", out.paint(Color::Pending, "waiting")))?;
    }
    out.data(&format!("  {} of {} machines can take it", slot.able, slot.nodes))?;
    for rule in &slot.rules {
        out.data(&format!("    {:>4} {} [{}]", rule.nodes, rule.reason, rule.rule))?;
    }
    for without in &slot.without {
        let more = without.nodes.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let named = without.nodes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        out.data(&format!("  without the rule `{}` {named}{more} would take it", without.rule))?;
    }
    for (number, remedy) in slot.remedies.iter().enumerate() {
        let word = if number == 0 { "hint" } else { "  or" };
        out.data(&format!("  {word}: {remedy}"))?;
    }
    Ok(())
}
