//! `node …`: machines seen and changed.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use http::Method;
use wharf_api::{
    transport::{
        Client,
        node::{Prune, PruneKind, Pruned, PrunedThing},
    },
    v1,
};
use wharf_model::Bytes;

use crate::{
    Exit,
    cli::Global,
    commands::{ago, confirm, now},
    connect::{Cluster, query},
    hint,
    output::{Color, Format, Output, table},
};

/// Look at machines and change them
#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, made from the command line")]
enum Verb {
    /// List the machines of the cluster
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  wharf node ls\n  wharf node ls --format json"
    )]
    Ls,
    /// Show everything known of a machine
    #[command(
        after_help = "Examples:\n  wharf node inspect worker-1\n  wharf node inspect worker-1 worker-2"
    )]
    Inspect {
        /// Name or id
        #[arg(required = true)]
        node: Vec<String>,
    },
    /// Move a machine's tasks elsewhere, and give it no new ones
    #[command(
        after_help = "Tasks move as in a release: a new one is made elsewhere, serves and is led to before the old one drains and stops; of one service so many\nat once as its `update_config.parallelism` says. What cannot move is named with the reason, and waited for.\n\nExamples:\n  wharf node drain worker-2\n  wharf node activate worker-2     let it take tasks again"
    )]
    Drain {
        /// Name or id
        node: String,
        /// Return at once instead of waiting until it has no tasks
        #[arg(long)]
        detach: bool,
        /// How long to wait, in seconds
        #[arg(long, default_value_t = 300, value_name = "SECONDS", conflicts_with = "detach")]
        timeout: u64,
    },
    /// Let a machine take tasks (again)
    #[command(after_help = "Examples:\n  wharf node activate worker-2")]
    Activate {
        /// Name or id
        node: String,
    },
    /// Keep a machine's tasks, and give it no new ones
    #[command(
        after_help = "Examples:\n  wharf node pause worker-2\n  wharf node activate worker-2     let it take tasks again"
    )]
    Pause {
        /// Name or id
        node: String,
    },
    /// Set or remove labels, or make it a gateway
    #[command(
        after_help = "Examples:\n  wharf node label worker-1 zone=a disk=ssd\n  wharf node label worker-1 disk-          remove one\n  wharf node label worker-1 --gateway      published ports listen there, too"
    )]
    Label {
        /// Name or id
        node: String,
        /// `KEY=VALUE` to set, `KEY-` to remove
        labels: Vec<String>,
        /// Published ports listen on it
        #[arg(long, conflicts_with = "no_gateway")]
        gateway: bool,
        /// Published ports do not listen on it
        #[arg(long)]
        no_gateway: bool,
    },
    /// Change how work comes to a machine: its labels, pool, taints, overcommitment and maintenance
    #[command(
        after_help = "A pool keeps a machine for services that ask for it (`x-wharf.pool`), a taint keeps off those that do not tolerate it.\nWith `--overcommit` more is promised than there is, in per cent: cpus=200 lets tasks reserve twice the processors.\n\nExamples:\n  wharf node update worker-1 --label-add disk=ssd --label-rm zone\n  wharf node update worker-1 --pool batch           --pool '' takes it out again\n  wharf node update worker-1 --taint gpu:NoSchedule --taint-rm team\n  wharf node update worker-1 --overcommit cpus=200,memory=120\n  wharf node update worker-1 --maintenance 2h --drain --note 'new disks'\n  wharf node update worker-1 --maintenance 2h --from 2026-11-23T02:00:00Z\n  wharf node update worker-1 --no-maintenance"
    )]
    Update(Update),
    /// Show or change which machine a task goes to where its file does not say it
    #[command(
        after_help = "spread: the one with fewest tasks of the service, then the emptiest. binpack: the fullest that has room. random: any.\nA service says it with `x-wharf.strategy`. What runs stays where it is.\n\nExamples:\n  wharf node default\n  wharf node default --strategy binpack"
    )]
    Default {
        /// spread, binpack or random
        #[arg(long, value_name = "WHICH")]
        strategy: Option<String>,
    },
    /// Give machines new keys of their WireGuard tunnels, without interrupting them
    #[command(
        after_help = "Each machine makes its key itself, and uses it once all others accept it; one machine after the other.\nKeys are also replaced when they are 30 days old.\n\nExamples:\n  wharf node rotate-key worker-2\n  wharf node rotate-key --all"
    )]
    RotateKey {
        /// Name or id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        node: Vec<String>,
        /// Every machine
        #[arg(long)]
        all: bool,
        /// Return at once instead of waiting until the keys are in force
        #[arg(long)]
        detach: bool,
        /// How long to wait, in seconds
        #[arg(long, default_value_t = 120, value_name = "SECONDS", conflicts_with = "detach")]
        timeout: u64,
    },
    /// Remove images from machines that nobody needs, and what builds have left
    #[command(
        after_help = "What any kept release of any app needs stays, so that a rollback finds it, and so does what tasks run from.\nA machine does this by itself once its disk is too full.\n\nExamples:\n  wharf node prune worker-1 --dry-run     what would go, and why the rest stays\n  wharf node prune --all\n  wharf node prune worker-1 --foreign     also images that somebody else brought there"
    )]
    Prune {
        /// Name or id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        node: Vec<String>,
        /// Every machine
        #[arg(long)]
        all: bool,
        /// Only say what would go
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Also images that Wharf did not bring, such as those of `docker pull`
        #[arg(long)]
        foreign: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Remove a machine from the cluster for good: its certificate is revoked
    #[command(
        after_help = "Examples:\n  wharf node rm worker-2\n  wharf node rm -y --force worker-2     although it has tasks, or will never come back"
    )]
    Rm {
        /// Name or id
        node: String,
        /// Also with tasks on it: they count as lost
        #[arg(long)]
        force: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What of a machine changes.
#[derive(Debug, clap::Args)]
struct Update {
    /// Name or id
    node: String,
    /// active, pause or drain; returns at once
    #[arg(long, value_name = "WHICH")]
    availability: Option<String>,
    /// Set a label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label_pair)]
    label_add: Vec<(String, String)>,
    /// Remove a label; may be given several times
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// The pool it belongs to; empty for none
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Set a taint, KEY[=VALUE]:NoSchedule or :NoExecute; may be given several times
    #[arg(long, value_name = "TAINT")]
    taint: Vec<String>,
    /// Remove a taint, or all of a key; may be given several times
    #[arg(long, value_name = "TAINT")]
    taint_rm: Vec<String>,
    /// What may be promised of it, in per cent: cpus, memory, limit-cpus, limit-memory
    #[arg(long, value_name = "WHAT=PERCENT,…", value_parser = overcommit)]
    overcommit: Option<Factors>,
    /// How full its disks may be, in per cent: room is made down to LOW, from HIGH on, and from FULL on it takes no new tasks
    #[arg(long, value_name = "LOW,HIGH,FULL")]
    disk_marks: Option<wharf_model::DiskMarks>,
    /// It is worked on for so long: 30m, 2h
    #[arg(long, value_name = "TIME", value_parser = super::token::ttl)]
    maintenance: Option<u64>,
    /// When that begins: a time such as 2026-11-23T02:00:00Z [default: now]
    #[arg(long, value_name = "TIME", requires = "maintenance")]
    from: Option<jiff::Timestamp>,
    /// Its tasks move away meanwhile
    #[arg(long, requires = "maintenance")]
    drain: bool,
    /// What is worked on
    #[arg(
        long,
        value_name = "TEXT",
        requires = "maintenance",
        default_value = "",
        hide_default_value = true
    )]
    note: String,
    /// Take back every maintenance there is
    #[arg(long)]
    no_maintenance: bool,
}

fn label_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("`{text}` is no label: write KEY=VALUE")),
    }
}

/// How much may be promised, as far as it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Factors(v1::OvercommitChange);

fn overcommit(text: &str) -> Result<Factors, String> {
    let mut change = v1::OvercommitChange::default();
    for part in text.split(',') {
        let wrong = || {
            format!("`{part}` is no factor: write cpus=200, memory=120, limit-cpus=400 or limit-memory=150")
        };
        let (what, percent) = part.split_once('=').ok_or_else(wrong)?;
        let percent = percent.trim_end_matches('%').parse().map_err(|_| wrong())?;
        let factor = match what {
            "cpus" => &mut change.cpus,
            "memory" => &mut change.memory,
            "limit-cpus" => &mut change.limit_cpus,
            "limit-memory" => &mut change.limit_memory,
            _ => return Err(wrong()),
        };
        *factor = Some(percent);
    }
    Ok(Factors(change))
}

pub(crate) async fn run(args: Node, global: &Global, out: &Output) -> Result<Exit> {
    let client = Cluster::dial(global).await?.client;
    match args.verb {
        Verb::Ls => ls(&client, out).await,
        Verb::Inspect { node } => inspect(&client, &node, out).await,
        Verb::Drain { node, detach, timeout } => drain(&client, &node, detach, timeout, out).await,
        Verb::Activate { node } => set(&client, &node, "active", out).await,
        Verb::Pause { node } => set(&client, &node, "pause", out).await,
        Verb::Label { node, labels, gateway, no_gateway } => {
            let gateway = (gateway || no_gateway).then_some(gateway);
            label(&client, &node, &labels, gateway, out).await
        }
        Verb::Update(update) => change_as_said(&client, update, out).await,
        Verb::Default { strategy } => {
            const PATH: &str = "/v1/placement-defaults";
            let found: v1::PlacementDefaults = match strategy {
                None => client.get(PATH).await?,
                Some(_) => client.call(Method::PUT, PATH, &v1::PlacementDefaults { strategy }).await?,
            };
            match out.format {
                Format::Json => out.json(&found)?,
                Format::Table => out.data(&format!("strategy     {}", found.strategy.unwrap_or_default()))?,
            }
            Ok(Exit::Done)
        }
        Verb::RotateKey { node, all, detach, timeout } => {
            rotate(&client, node, all, (!detach).then_some(timeout), out).await
        }
        Verb::Prune { node, all, dry_run, foreign, yes } => {
            let ask = Prune { dry_run, everything: foreign };
            prune(&client, node, all, ask, yes, out).await
        }
        Verb::Rm { node, force, yes } => rm(&client, &node, force, yes, out).await,
    }
}

async fn ls(client: &Client, out: &Output) -> Result<Exit> {
    let nodes: Vec<v1::Node> = client.get("/v1/nodes").await?;
    let headers = [
        "NAME",
        "STATE",
        "AVAILABILITY",
        "ROLES",
        "ADDRESS",
        "PLATFORM",
        "CPUS",
        "MEMORY",
        "DISK",
        "TASKS",
        "ENGINE",
        "AGENT",
        "LABELS",
    ];
    out.list(&nodes, &headers, |node| {
        let dash = || "-".to_owned();
        vec![
            node.name.clone(),
            if node.state == "ready" {
                match (node.suspected_since, node.held_until) {
                    (Some(since), _) => format!("ready, not heard ({})", ago(since)),
                    (None, Some(_)) => "ready, held back".to_owned(),
                    (None, None) => node.state.clone(),
                }
            } else {
                format!("{} ({})", node.state, ago(node.since))
            },
            node.availability.clone(),
            node.roles.join(","),
            node.address.clone().unwrap_or_else(dash),
            node.platform.clone().unwrap_or_else(dash),
            node.cpus.map_or_else(dash, |cpus| cpus.to_string()),
            node.memory.map_or_else(dash, |memory| memory.to_string()),
            disk(node).unwrap_or_else(dash),
            node.tasks.to_string(),
            node.engine_version.clone().unwrap_or_else(dash),
            node.agent_version.clone().unwrap_or_else(dash),
            node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
        ]
    })?;
    if nodes.is_empty() {
        out.say("no machine has joined; `wharf token create` prints the line to run on one");
    }
    for node in nodes.iter().filter(|node| !node.reason.is_empty() && node.state != "ready") {
        out.say(&format!("{}: {}", node.name, node.reason));
    }
    for node in &nodes {
        doubts(node).into_iter().for_each(|said| out.say(&said));
    }
    for node in nodes.iter().filter(|node| node.state == "ready") {
        if let Some(older) = &node.serves_older {
            out.say(&format!("{}: {older}", node.name));
        }
    }
    for node in &nodes {
        for problem in node.problems.iter().filter(|problem| problem.starts_with("the disk of ")) {
            out.say(&format!("{}: {problem}", node.name));
        }
    }
    Ok(Exit::Done)
}

/// How full the fullest of a machine's disks is.
fn disk(node: &v1::Node) -> Option<String> {
    let fullest = node.disks.iter().map(|disk| disk.percent).max()?;
    Some(format!("{fullest}%{}", if node.disk_full { " (full)" } else { "" }))
}

/// What else there is to say of how a node can be counted on.
fn doubts(node: &v1::Node) -> Vec<String> {
    let mut said = Vec::new();
    if !node.suspected_by.is_empty() {
        said.push(format!(
            "{}: suspected to be gone: {} {} not hear it; nothing is sent to its tasks where others serve",
            node.name,
            node.suspected_by.join(" and "),
            if node.suspected_by.len() == 1 { "does" } else { "do" }
        ));
    }
    let seconds = |until: u64| until.saturating_sub(now()).div_ceil(1000);
    if let Some(until) = node.held_until {
        let times = node.lapses.len();
        said.push(format!(
            "{}: gets no new tasks for another {} s: it went away {times} times lately",
            node.name,
            seconds(until)
        ));
    }
    if let Some(until) = node.spared_until {
        said.push(format!(
            "{}: counts as down in {} s, and its tasks are replaced then; too many machines are away at once to replace all at once",
            node.name,
            seconds(until)
        ));
    }
    said
}

async fn get(client: &Client, node: &str) -> Result<v1::Node> {
    Ok(client.get(&format!("/v1/nodes/{}", query(node))).await?)
}

async fn inspect(client: &Client, names: &[String], out: &Output) -> Result<Exit> {
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(get(client, name).await?);
    }
    out.json(&nodes)?;
    Ok(Exit::Done)
}

async fn change(client: &Client, node: &str, change: &v1::NodeChange) -> Result<v1::Node> {
    Ok(client.call(Method::PATCH, &format!("/v1/nodes/{}", query(node)), change).await?)
}

fn show(node: &v1::Node, sentence: &str, out: &Output) -> Result<()> {
    match out.format {
        Format::Json => out.json(node),
        Format::Table => {
            out.say(sentence);
            Ok(())
        }
    }
}

async fn set(client: &Client, name: &str, availability: &str, out: &Output) -> Result<Exit> {
    let wish = v1::NodeChange { availability: Some(availability.into()), ..v1::NodeChange::default() };
    let node = change(client, name, &wish).await?;
    show(&node, &format!("{} is {}", node.name, node.availability), out)?;
    Ok(Exit::Done)
}

async fn drain(client: &Client, name: &str, detach: bool, timeout: u64, out: &Output) -> Result<Exit> {
    let wish = v1::NodeChange { availability: Some("drain".into()), ..v1::NodeChange::default() };
    let mut node = change(client, name, &wish).await?;
    if detach {
        show(&node, &format!("{} is draining its {} task(s)", node.name, node.tasks), out)?;
        return Ok(Exit::Done);
    }
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(timeout);
    let path = format!("/v1/nodes/{}/drain", query(&node.id));
    let mut said = usize::MAX;
    let mut named = BTreeMap::new();
    loop {
        let left: v1::NodeDrain = client.get(&path).await?;
        if left.tasks.is_empty() {
            break;
        }
        if left.availability != "drain" {
            out.must_say(&format!(
                "{} is {} again: somebody does not want it drained any more",
                left.node, left.availability
            ));
            return Ok(Exit::Failed);
        }
        if left.tasks.len() != said {
            said = left.tasks.len();
            out.say(&format!("{} has {said} task(s) left", left.node));
        }
        // Each is named once, and again when the reason is another.
        for task in left.tasks.iter().filter(|task| task.state == "stays") {
            let known = named.insert((task.environment.clone(), task.name.clone()), task.why.clone());
            if known.as_ref() != Some(&task.why) {
                task.why
                    .iter()
                    .for_each(|why| out.say(&format!("  {}: {why}", out.paint(Color::Bad, "stays"))));
            }
        }
        if tokio::time::Instant::now() >= deadline {
            out.must_say(&format!("{} still has {} task(s) after {timeout} s", left.node, left.tasks.len()));
            for task in &left.tasks {
                let why =
                    if task.why.is_empty() { String::new() } else { format!(": {}", task.why.join("; ")) };
                out.must_say(&format!("  {} of {} {}{why}", task.name, task.environment, task.state));
            }
            out.must_say(&format!(
                "hint: it goes on; `wharf node drain {}` waits again, `wharf node activate {0}` takes it back",
                left.node
            ));
            return Ok(Exit::NotYet);
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    node = get(client, &node.id).await?;
    show(&node, &format!("{} is drained: it has no tasks", node.name), out)?;
    Ok(Exit::Done)
}

async fn label(
    client: &Client,
    name: &str,
    labels: &[String],
    gateway: Option<bool>,
    out: &Output,
) -> Result<Exit> {
    if labels.is_empty() && gateway.is_none() {
        bail!(crate::Usage("say what to change: `KEY=VALUE`, `KEY-`, `--gateway` or `--no-gateway`".into()));
    }
    let (mut set, mut remove) = (BTreeMap::new(), Vec::new());
    for text in labels {
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => {
                set.insert(key.to_owned(), value.to_owned());
            }
            (None, Some(key)) if !key.is_empty() => remove.push(key.to_owned()),
            _ => bail!(hint(
                format!("`{text}` is no label"),
                "write `KEY=VALUE` to set one and `KEY-` to remove one"
            )),
        }
    }
    let wish = v1::NodeChange { labels: set, remove_labels: remove, gateway, ..v1::NodeChange::default() };
    let node = change(client, name, &wish).await?;
    let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
    show(&node, &format!("{} ({}) has {labels}", node.name, node.roles.join(", ")), out)?;
    Ok(Exit::Done)
}

async fn change_as_said(client: &Client, update: Update, out: &Output) -> Result<Exit> {
    let windows = update.maintenance.map(|seconds| {
        let from =
            update.from.map_or_else(super::now, |from| u64::try_from(from.as_millisecond()).unwrap_or(0));
        let until = from.saturating_add(seconds.saturating_mul(1000));
        v1::MaintenanceWindow { from, until, drain: update.drain, note: update.note }
    });
    let wish = v1::NodeChange {
        availability: update.availability,
        labels: update.label_add.into_iter().collect(),
        remove_labels: update.label_rm,
        pool: update.pool,
        taints: update.taint,
        remove_taints: update.taint_rm,
        overcommit: update.overcommit.map(|Factors(change)| change),
        disk_marks: update.disk_marks.map(|marks| marks.to_string()),
        windows: windows.into_iter().collect(),
        clear_windows: update.no_maintenance,
        ..v1::NodeChange::default()
    };
    let node = change(client, &update.node, &wish).await?;
    show(&node, &format!("{} {}", node.name, standing(&node)), out)?;
    Ok(Exit::Done)
}

/// How work comes to a machine, in words.
fn standing(node: &v1::Node) -> String {
    let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let listed = |what: &str, list: &[String]| match list.is_empty() {
        true => String::new(),
        false => format!("; {what} {}", list.join(", ")),
    };
    let pool = node.pool.as_ref().map_or_else(String::new, |pool| format!("; pool {pool}"));
    let overcommit = node.overcommit.map_or_else(String::new, |factors| {
        let limit = |what: &str, limit: Option<u32>| {
            limit.map_or_else(String::new, |limit| format!(", limits of {what} up to {limit} %"))
        };
        format!(
            "; promises {} % of its CPUs and {} % of its memory{}{}",
            factors.cpus,
            factors.memory,
            limit("CPUs", factors.limit_cpus),
            limit("memory", factors.limit_memory)
        )
    });
    let window = |window: &v1::MaintenanceWindow| {
        let at = |at: u64| {
            let at = i64::try_from(at).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
            at.map_or_else(|| "?".to_owned(), |at| format!("{at:.0}"))
        };
        let drain = if window.drain { ", tasks move away" } else { "" };
        let note = if window.note.is_empty() { String::new() } else { format!(", {}", window.note) };
        format!("{} to {}{drain}{note}", at(window.from), at(window.until))
    };
    let windows: Vec<_> = node.windows.iter().map(window).collect();
    format!(
        "is {}{}{pool}{}{overcommit}{}",
        node.availability,
        listed("labels", &labels),
        listed("taints", &node.taints),
        listed("maintenance", &windows)
    )
}

async fn rotate(
    client: &Client,
    mut names: Vec<String>,
    all: bool,
    timeout: Option<u64>,
    out: &Output,
) -> Result<Exit> {
    if all {
        let nodes: Vec<v1::Node> = client.get("/v1/nodes").await?;
        // One that is away could not, and the others would wait for it.
        names = nodes
            .into_iter()
            .filter(|node| node.state == "ready" && node.wireguard.is_some())
            .map(|node| node.name)
            .collect();
    }
    let mut nodes = Vec::new();
    for name in names {
        let before = get(client, &name).await?;
        if before.wireguard.is_none() {
            bail!(hint(
                format!("{} has no WireGuard key", before.name),
                "its agent is older than this command, or has not reported yet"
            ));
        }
        let wish = v1::NodeChange { rotate_key: true, ..v1::NodeChange::default() };
        nodes.push(change(client, &before.id, &wish).await?);
    }
    let Some(timeout) = timeout else {
        nodes.iter().try_for_each(|node| show(node, &format!("{} makes a new key", node.name), out))?;
        return Ok(Exit::Done);
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(timeout);
    for node in nodes {
        let mut node = node;
        while node.wireguard.as_ref().is_none_or(|own| own.rotation < own.wanted_rotation) {
            let next = node.wireguard.as_ref().and_then(|own| own.next_key.clone());
            if node.wireguard.as_ref().is_some_and(|own| own.carrier.is_none()) {
                // Without tunnels there is nobody to be interrupted, and nobody to agree.
                out.say(&format!(
                    "{} has no tunnels yet: it makes a new key before its first one",
                    node.name
                ));
                break;
            }
            if tokio::time::Instant::now() >= deadline {
                out.must_say(&match next {
                    Some(next) => format!("{}: not all others accept its next key {next} yet", node.name),
                    None => format!("{} has not made a new key yet ({})", node.name, node.state),
                });
                out.must_say("hint: `wharf node ls` shows whether a machine is away, which the others wait for until it counts as down");
                return Ok(Exit::NotYet);
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            node = get(client, &node.id).await?;
        }
        let key = node.wireguard.as_ref().map(|own| own.key.clone()).unwrap_or_default();
        show(&node, &format!("{} has the key {key}", node.name), out)?;
    }
    Ok(Exit::Done)
}

async fn prune(
    client: &Client,
    mut names: Vec<String>,
    all: bool,
    ask: Prune,
    yes: bool,
    out: &Output,
) -> Result<Exit> {
    if all {
        let nodes: Vec<v1::Node> = client.get("/v1/nodes").await?;
        names = nodes.into_iter().filter(|node| node.state == "ready").map(|node| node.name).collect();
    }
    let mut answers = Vec::new();
    let look = Prune { dry_run: true, ..ask };
    for name in &names {
        answers.push((get(client, name).await?.name, ask_to_prune(client, name, &look).await?));
    }
    if !ask.dry_run && answers.iter().any(|(_, answer)| !answer.removed.is_empty()) {
        if !yes {
            show_pruned(&answers, true, out)?;
            if !confirm("Remove them?")? {
                out.say("nothing was changed");
                return Ok(Exit::Failed);
            }
        }
        for (name, answer) in answers.iter_mut().filter(|of| !of.1.removed.is_empty()) {
            *answer = ask_to_prune(client, name, &ask).await?;
        }
    }
    match out.format {
        Format::Json => out.json(&answers.into_iter().collect::<BTreeMap<_, _>>())?,
        Format::Table => show_pruned(&answers, ask.dry_run, out)?,
    }
    Ok(Exit::Done)
}

async fn ask_to_prune(client: &Client, node: &str, ask: &Prune) -> Result<Pruned> {
    // As long as it takes to remove many large images.
    let patience = std::time::Duration::from_secs(1800);
    let path = format!("/v1/nodes/{}/prune", query(node));
    Ok(client.call_within(Method::POST, &path, ask, patience).await?)
}

/// What went or would go, and what stays of it. Most images stay because they are used: those are only counted.
fn show_pruned(answers: &[(String, Pruned)], dry_run: bool, out: &Output) -> Result<()> {
    const USED: &str = "a container is made from it";
    let mut rows: Vec<(&str, &str, &PrunedThing)> = Vec::new();
    for (node, answer) in answers {
        let gone = if dry_run { "would go" } else { "removed" };
        rows.extend(answer.removed.iter().map(|thing| (node.as_str(), gone, thing)));
        let told = answer.kept.iter().filter(|thing| thing.why != USED);
        rows.extend(told.map(|thing| (node.as_str(), "stays", thing)));
    }
    let cells = rows.iter().map(|(node, what, thing)| {
        let (kind, size) = (thing.kind.to_string(), thing.size.to_string());
        vec![(*node).to_owned(), (*what).to_owned(), kind, thing.name.clone(), size, thing.why.clone()]
    });
    let cells: Vec<_> = cells.collect();
    if !cells.is_empty() {
        for line in table(&["NODE", "", "WHAT", "NAME", "SIZE", "WHY"], &cells) {
            out.data(&line)?;
        }
    }
    for (node, answer) in answers {
        let images = answer.removed.iter().filter(|thing| thing.kind == PruneKind::Image).count();
        let used = answer.kept.iter().filter(|thing| thing.why == USED).count();
        let freed: Bytes = answer.freed;
        out.say(&match (dry_run, answer.removed.is_empty()) {
            (_, true) => format!("{node}: nothing can go; {used} more image(s) are used by containers"),
            (true, false) => format!(
                "{node}: {images} image(s) would go, {freed} at most; {used} more are used by containers"
            ),
            (false, false) => format!("{node}: {images} image(s) removed, {freed} more are free"),
        });
    }
    Ok(())
}

async fn rm(client: &Client, name: &str, force: bool, yes: bool, out: &Output) -> Result<Exit> {
    let node = get(client, name).await?;
    if !yes {
        out.say(&format!(
            "- node {}: it is {}, has {} task(s), and will have to join anew to come back",
            node.name, node.state, node.tasks
        ));
        if !confirm("Remove it?")? {
            out.say("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let _nothing: Option<()> =
        client.call(Method::DELETE, &format!("/v1/nodes/{}?force={force}", node.id), &()).await?;
    out.say(&format!("{} was removed from the cluster; its certificate is good for nothing", node.name));
    Ok(Exit::Done)
}
