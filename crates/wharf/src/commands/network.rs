//! `network …`: networks seen, and the path of a packet.

use anyhow::Result;
use http::Method;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    connect::{Cluster, query},
    output::{Color, Format, Output, table},
};

/// Look at the networks of apps
#[derive(Debug, clap::Args)]
pub(crate) struct Network {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the networks of the environment
    #[command(
        visible_alias = "list",
        after_help = "A network belongs to an app: it is made when the app's Compose file names it, and goes when it no longer does or the app is taken down.\n\nExamples:\n  wharf network ls\n  wharf network ls --all               of every environment\n  wharf network ls --format json"
    )]
    Ls {
        /// Of every environment
        #[arg(long, short)]
        all: bool,
    },
    /// Show a network: its nodes, its tasks, and the names on it
    #[command(
        after_help = "A node acknowledges when it has the present tables and works by them.\n\nExamples:\n  wharf network inspect shop_default\n  wharf network inspect shop/default\n  wharf network inspect --format json shop_default"
    )]
    Inspect {
        /// Name, `APP/NETWORK` or id
        network: String,
    },
    /// Show or change what holds for networks whose files say nothing else
    #[command(
        after_help = "Without options it shows what holds. A change is shown first, with every network that changes, and asked about.\nBackends: vxlan works everywhere; routed costs least, where nodes share a segment or somebody makes routes between them;\nwireguard encrypts, and crosses NAT. A running network changes in place: its tasks keep running, with their addresses.\n\nExamples:\n  wharf network default\n  wharf network default routed\n  wharf network default routed --route-command '/usr/local/bin/routes --table main' --route-limit 50\n  wharf network default --pool 172.24.0.0/14     for networks that are made from now on"
    )]
    Default {
        /// How packets travel between nodes: vxlan, routed or wireguard
        backend: Option<String>,
        /// Where new networks get their subnets from; overlap with nothing your machines use
        #[arg(long, value_name = "CIDR")]
        pool: Option<String>,
        /// The program that makes routes outside the nodes for routed networks; empty for none
        #[arg(long, value_name = "COMMAND")]
        route_command: Option<String>,
        /// The most routes that it can make [default: 50]
        #[arg(long, value_name = "N")]
        route_limit: Option<u32>,
        /// Only show what it would do
        #[arg(long)]
        plan: bool,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Explain the path of a packet, step by step, and send some
    #[command(
        after_help = "Both ends are looked at from outside: nothing is needed in the containers.\nExits with 1 if a step is broken or a packet is lost.\n\nExamples:\n  wharf network trace shop-web-1 shop-db-1\n  wharf network trace web db --port 3306     any task of each service\n  wharf network trace n1 n2                  between the bridges of two machines\n  wharf network trace web 10.192.0.7"
    )]
    Trace {
        /// From where: a task, a service, a node, an address, or a name
        from: String,
        /// To where
        to: String,
        /// Try this port as well
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// The port is one of UDP
        #[arg(long, requires = "port")]
        udp: bool,
        /// Over this network, if both are on several
        #[arg(long, value_name = "NETWORK")]
        network: Option<String>,
    },
}

pub(crate) async fn run(args: Network, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls { all } => ls(&cluster, all, out).await,
        Verb::Inspect { network } => inspect(&cluster, &network, out).await,
        Verb::Default { backend, pool, route_command, route_limit, plan, yes } => {
            let change = v1::NetworkDefaultsChange {
                backend,
                pool,
                route_command: route_command
                    .map(|command| command.split_whitespace().map(str::to_owned).collect()),
                route_limit,
                dry_run: true,
                fingerprint: None,
            };
            defaults(&cluster, change, plan, yes, out).await
        }
        Verb::Trace { from, to, port, udp, network } => {
            let environment = Some(cluster.environment.to_string());
            trace(&cluster, &v1::TraceRequest { from, to, environment, network, port, udp }, out).await
        }
    }
}

async fn defaults(
    cluster: &Cluster,
    change: v1::NetworkDefaultsChange,
    only_plan: bool,
    yes: bool,
    out: &Output,
) -> Result<Exit> {
    const PATH: &str = "/v1/network-defaults";
    if change == (v1::NetworkDefaultsChange { dry_run: true, ..Default::default() }) {
        let found: v1::NetworkDefaults = cluster.client.get(PATH).await?;
        return show_defaults(&found, out);
    }
    let plan: v1::NetworkDefaultsPlan = cluster.client.call(Method::PUT, PATH, &change).await?;
    if plan.changes.is_empty() {
        out.say("it is so already");
        return Ok(Exit::Done);
    }
    for line in &plan.changes {
        out.say(line);
    }
    if only_plan {
        return Ok(Exit::Done);
    }
    if !super::up::agreed(yes, "Change this?")? {
        out.say("nothing was changed");
        return Ok(Exit::Failed);
    }
    let change = v1::NetworkDefaultsChange { dry_run: false, fingerprint: Some(plan.fingerprint), ..change };
    let done: v1::NetworkDefaultsPlan = cluster.client.call(Method::PUT, PATH, &change).await?;
    show_defaults(&done.defaults, out)
}

fn show_defaults(found: &v1::NetworkDefaults, out: &Output) -> Result<Exit> {
    if out.format == Format::Json {
        out.json(found)?;
        return Ok(Exit::Done);
    }
    out.data(&format!("backend      {}", found.backend))?;
    out.data(&format!("pool         {}", found.pool))?;
    if let Some(command) = &found.route_command {
        let limit = found.route_limit.unwrap_or_default();
        out.data(&format!("routes       made by `{} sync`, at most {limit}", command.join(" ")))?;
        let programmed = found.routes_programmed.unwrap_or_default();
        let error = found.routes_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        out.data(&format!(
            "             {programmed} of {} there{error}",
            found.routes_wanted.unwrap_or_default()
        ))?;
    }
    Ok(Exit::Done)
}

async fn ls(cluster: &Cluster, all: bool, out: &Output) -> Result<Exit> {
    let path = match all {
        true => "/v1/networks".to_owned(),
        false => format!("/v1/networks?environment={}", query(cluster.environment.as_str())),
    };
    let networks: Vec<v1::Network> = cluster.client.get(&path).await?;
    let headers = ["NETWORK", "ENVIRONMENT", "APP", "BACKEND", "SUBNET", "VNI", "NODES", "TASKS"];
    out.list(&networks, &headers, |network| {
        let subnets = [Some(network.subnet.clone()), network.subnet6.clone()];
        vec![
            network.name.clone(),
            network.environment.clone(),
            network.app.clone(),
            format!("{}{}", network.backend, if network.internal { ", internal" } else { "" }),
            subnets.into_iter().flatten().collect::<Vec<_>>().join(", "),
            network.vni.to_string(),
            network.nodes.to_string(),
            network.tasks.to_string(),
        ]
    })?;
    if networks.is_empty() {
        out.say("there is no network: they are made for the apps that `wharf up` deploys");
    }
    Ok(Exit::Done)
}

async fn inspect(cluster: &Cluster, name: &str, out: &Output) -> Result<Exit> {
    let path = format!("/v1/networks/{}?environment={}", segment(name), query(cluster.environment.as_str()));
    let found: v1::NetworkDetail = cluster.client.get(&path).await?;
    if out.format == Format::Json {
        out.json(&found)?;
        return Ok(Exit::Done);
    }
    let network = &found.network;
    out.data(&format!("network      {} ({})", network.name, network.id))?;
    out.data(&format!("app          {}/{}, as `{}`", network.environment, network.app, network.key))?;
    out.data(&format!(
        "backend      {}{}",
        network.backend,
        if network.internal { ", internal: no way out" } else { "" }
    ))?;
    let subnets = [Some(network.subnet.clone()), network.subnet6.clone()];
    out.data(&format!("subnet       {}", subnets.into_iter().flatten().collect::<Vec<_>>().join(", ")))?;
    out.data(&format!("identifier   {}, bridge {} on each node", network.vni, found.bridge))?;
    out.data("")?;
    let nodes: Vec<Vec<String>> = found.on.iter().map(node_row).collect();
    for line in table(&["NODE", "STATE", "ADDRESS", "GATEWAY", "BLOCKS", "TASKS", "TABLES"], &nodes) {
        out.data(&line)?;
    }
    out.data("")?;
    let members: Vec<Vec<String>> = found.members.iter().map(member_row).collect();
    for line in table(&["TASK", "ADDRESS", "NODE", "STATE", "NAMES"], &members) {
        out.data(&line)?;
    }
    if !found.virtual_addresses.is_empty() {
        out.data("")?;
        let services = found.virtual_addresses.iter();
        let services: Vec<_> = services.map(|(at, service)| vec![service.clone(), at.clone()]).collect();
        for line in table(&["SERVICE", "VIRTUAL ADDRESS"], &services) {
            out.data(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn node_row(node: &v1::NetworkNode) -> Vec<String> {
    let dash = || "-".to_owned();
    let tables = match (node.wanted, node.acknowledged) {
        (true, true) => "acknowledged",
        (true, false) => "not acknowledged",
        (false, _) => "not needed now",
    };
    let blocks = if node.blocks.is_empty() { dash() } else { node.blocks.join(", ") };
    vec![
        node.node.clone(),
        node.state.clone(),
        node.address.clone().unwrap_or_else(dash),
        node.gateway.clone().unwrap_or_else(dash),
        blocks,
        node.tasks.to_string(),
        tables.to_owned(),
    ]
}

fn member_row(member: &v1::NetworkMember) -> Vec<String> {
    let addresses = [Some(member.address.clone()), member.address6.clone()];
    let state = match member.ready {
        true => "ready".to_owned(),
        false => format!("{}, not ready", member.state),
    };
    vec![
        member.task.clone(),
        addresses.into_iter().flatten().collect::<Vec<_>>().join(", "),
        member.node.clone(),
        state,
        member.names.join(", "),
    ]
}

/// Text as one segment of a path: a slash in it is no separator.
fn segment(text: &str) -> String {
    query(text).replace('/', "%2F")
}

async fn trace(cluster: &Cluster, wish: &v1::TraceRequest, out: &Output) -> Result<Exit> {
    let found: v1::Trace = cluster.client.call(Method::POST, "/v1/trace", wish).await?;
    let exit = if found.works { Exit::Done } else { Exit::Failed };
    if out.format == Format::Json {
        out.json(&found)?;
        return Ok(exit);
    }
    let network = found.network.as_ref().map(|network| format!(" on {network}")).unwrap_or_default();
    out.data(&format!("{} to {}{network}", found.from, found.to))?;
    for (number, hop) in found.hops.iter().enumerate() {
        let (color, mark) = match hop.state.as_str() {
            "ok" => (Color::Good, "ok     "),
            "mended" => (Color::Pending, "mended "),
            "warning" => (Color::Pending, "warning"),
            _ => (Color::Bad, "BROKEN "),
        };
        let node = if hop.node.is_empty() { String::new() } else { format!("{}: ", hop.node) };
        out.data(&format!("{:>3}. {}  {node}{}", number + 1, out.paint(color, mark), hop.step))?;
        if let Some(problem) = &hop.problem {
            out.data(&format!("              {problem}"))?;
        }
        if let Some(remedy) = &hop.remedy {
            out.data(&format!("              hint: {remedy}"))?;
        }
    }
    for probe in &found.probes {
        let (color, mark) = if probe.came_through { (Color::Good, "came") } else { (Color::Bad, "LOST") };
        let time = probe.micros.map(|micros| format!(" in {}.{:02} ms", micros / 1000, micros % 1000 / 10));
        out.data(&format!(
            "     {}     {}: {}{}",
            out.paint(color, mark),
            probe.what,
            probe.outcome,
            time.unwrap_or_default()
        ))?;
    }
    out.data(&found.verdict)?;
    Ok(exit)
}
