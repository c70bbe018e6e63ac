//! `route …`: the routes of services, and how they do.

use anyhow::Result;
use wharf_api::v1;

use crate::{
    Exit,
    cli::Global,
    connect::{Cluster, query},
    output::{Color, Format, Output, table},
};

/// Look at routes: where they are, where they lead, and what goes through them
#[derive(Debug, clap::Args)]
pub(crate) struct Route {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the routes of the environment
    #[command(
        visible_alias = "list",
        after_help = "A route belongs to a service: `x-wharf.routes` in the Compose file. Published ports (`ports`) are seen with `wharf app inspect`.\n\nExamples:\n  wharf route ls\n  wharf route ls --all                 of every environment\n  wharf route ls --format json"
    )]
    Ls {
        /// Of every environment
        #[arg(long, short)]
        all: bool,
    },
    /// Show a route: its tasks as every gateway sees them, requests, errors and times
    #[command(
        after_help = "Numbers are sums over all gateways, since each began to serve the route. Times are until the head of the answer.\n\nExamples:\n  wharf route inspect web\n  wharf route inspect shop/web#2       its second route\n  wharf route inspect shop.example.com\n  wharf route inspect web --format json"
    )]
    Inspect {
        /// A service, `APP/SERVICE`, a host or an id, with `#NUMBER` if there are several
        route: String,
    },
}

pub(crate) async fn run(args: Route, global: &Global, out: &Output) -> Result<Exit> {
    let cluster = Cluster::dial(global).await?;
    match args.verb {
        Verb::Ls { all } => ls(&cluster, all, out).await,
        Verb::Inspect { route } => inspect(&cluster, &route, out).await,
    }
}

async fn ls(cluster: &Cluster, all: bool, out: &Output) -> Result<Exit> {
    let path = match all {
        true => "/v1/routes".to_owned(),
        false => format!("/v1/routes?environment={}", query(cluster.environment.as_str())),
    };
    let routes: Vec<v1::Route> = cluster.client.get(&path).await?;
    let headers = ["ROUTE", "ENVIRONMENT", "WHERE", "PORT", "TASKS"];
    out.list(&routes, &headers, |route| {
        vec![
            name(route),
            route.environment.clone(),
            route.place.clone(),
            route.port.to_string(),
            tasks(route),
        ]
    })?;
    if routes.is_empty() {
        out.say("there is no route: services have them by `x-wharf.routes` in the Compose file");
    }
    Ok(Exit::Done)
}

/// As people give it to `inspect`.
fn name(route: &v1::Route) -> String {
    let preview = if route.preview { " (preview)" } else { "" };
    format!("{}/{}#{}{preview}", route.app, route.service, route.number)
}

/// How many, and with which shares if there are several.
fn tasks(route: &v1::Route) -> String {
    let several = route.sets.len() > 1;
    let set =
        |set: &v1::RouteSet| format!("{} (generation {}, weight {})", set.tasks, set.generation, set.weight);
    if several { route.sets.iter().map(set).collect::<Vec<_>>().join(" + ") } else { route.tasks.to_string() }
}

async fn inspect(cluster: &Cluster, route: &str, out: &Output) -> Result<Exit> {
    let path = format!(
        "/v1/routes/{}?environment={}",
        query(route).replace('/', "%2F").replace('#', "%23"),
        query(cluster.environment.as_str())
    );
    let found: v1::RouteDetail = cluster.client.get(&path).await?;
    if out.format == Format::Json {
        out.json(&found)?;
        return Ok(Exit::Done);
    }
    for line in shown(&found, out) {
        out.data(&line)?;
    }
    Ok(Exit::Done)
}

fn shown(found: &v1::RouteDetail, out: &Output) -> Vec<String> {
    let v1::RouteDetail { route, total, .. } = found;
    let mut lines = vec![
        format!("route        {} ({})", name(route), route.environment),
        format!("where        {}", route.place),
        format!("leads to     port {} of {} {}", route.port, route.tasks, plural(route.tasks, "task")),
    ];
    lines.extend(settings(&found.spec));
    lines.push(format!("requests     {}", numbers(total)));
    if found.generations.len() > 1 {
        let generations = found.generations.iter();
        lines.extend(
            generations.map(|(generation, set)| format!("  generation {generation}: {}", numbers(set))),
        );
    }
    let refused = found.refused.iter().filter(|(_, count)| **count > 0);
    let refused: Vec<_> =
        refused.map(|(reason, count)| format!("{count} {}", reason.replace('_', " "))).collect();
    let others = [
        (found.retries, "tried again"),
        (found.fallbacks, "answered by the fallback"),
        (found.queued, "waiting"),
    ];
    let others =
        others.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let others: Vec<_> = others.collect();
    for (title, list) in [("refused", refused), ("of these", others)] {
        if !list.is_empty() {
            lines.push(format!("{title:<12} {}", list.join(", ")));
        }
    }
    lines.push(String::new());
    lines.extend(table(
        &["TASK", "NODE", "ADDRESS", "GATEWAY", "STATE", "UNDER WAY", "REQUESTS", "FAILED"],
        &found.endpoints.iter().flat_map(|endpoint| endpoint_rows(endpoint, out)).collect::<Vec<_>>(),
    ));
    lines.push(String::new());
    lines.extend(table(
        &["GATEWAY", "SERVES", "UNDER WAY", "REQUESTS", "PROCESSES"],
        &found.gateways.iter().map(gateway_row).collect::<Vec<_>>(),
    ));
    lines
}

/// What the file says beside where it is.
fn settings(spec: &serde_json::Value) -> Vec<String> {
    const SHOWN: [(&str, &str); 12] = [
        ("balance", "balance"),
        ("sticky", "sticky"),
        ("timeouts", "timeouts"),
        ("retries", "retries"),
        ("rate_limit", "rate limit"),
        ("concurrency", "concurrency"),
        ("breaker", "breaker"),
        ("basic_auth", "password"),
        ("allow", "allowed"),
        ("deny", "denied"),
        ("mirror", "mirror"),
        ("fallback", "fallback"),
    ];
    let set = |(key, title): (&str, &str)| Some(format!("{title:<12} {}", brief(spec.get(key)?)));
    SHOWN.into_iter().filter_map(set).collect()
}

/// A value in one line, as the file would have it.
fn brief(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(brief).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let members =
                members.iter().map(|(key, value)| format!("{} {}", key.replace('_', " "), brief(value)));
            members.collect::<Vec<_>>().join(", ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn numbers(numbers: &v1::RouteNumbers) -> String {
    let v1::RouteNumbers { requests, failures, active, p50_us, p95_us, p99_us, .. } = numbers;
    let mut text = format!("{requests}, {failures} failed, {active} under way");
    if *requests > 0 {
        let times = [("50%", p50_us), ("95%", p95_us), ("99%", p99_us)];
        let times =
            times.map(|(part, time)| format!("{part} in {}", time.map_or("more".to_owned(), milliseconds)));
        text.push_str(&format!("; {}", times.join(", ")));
    }
    text
}

fn milliseconds(micros: u64) -> String {
    let text = format!("{}.{:01}", micros / 1000, micros % 1000 / 100);
    format!("{} ms", text.trim_end_matches(".0"))
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

fn endpoint_rows(endpoint: &v1::RouteEndpoint, out: &Output) -> Vec<Vec<String>> {
    let first = |row: usize, text: &str| if row == 0 { text.to_owned() } else { String::new() };
    let node = endpoint.node.as_deref().unwrap_or("-");
    if endpoint.gateways.is_empty() {
        let texts = [&endpoint.task, node, &endpoint.address, "-", "no gateway has it yet", "-", "-", "-"];
        return vec![texts.map(str::to_owned).to_vec()];
    }
    let row = |(row, at): (usize, &v1::EndpointAtGateway)| {
        let color = match at.state.as_str() {
            "serving" => Color::Good,
            "open" => Color::Bad,
            _ => Color::Pending,
        };
        let why = if at.why.is_empty() { String::new() } else { format!(": {}", at.why) };
        vec![
            first(row, &endpoint.task),
            first(row, node),
            first(row, &endpoint.address),
            at.node.clone(),
            format!("{}{why}", out.paint(color, &at.state)),
            at.active.to_string(),
            at.requests.to_string(),
            at.failures.to_string(),
        ]
    };
    endpoint.gateways.iter().enumerate().map(row).collect()
}

fn gateway_row(gateway: &v1::RouteGateway) -> Vec<String> {
    let serves = match (gateway.serves, &gateway.problem) {
        (true, _) => "yes".to_owned(),
        (false, Some(problem)) => format!("no: {problem}"),
        (false, None) => "no".to_owned(),
    };
    vec![
        gateway.node.clone(),
        serves,
        gateway.active.to_string(),
        gateway.requests.to_string(),
        gateway.processes.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_said_in_one_line_each() {
        let spec = serde_json::json!({
            "port": 80,
            "rate_limit": {"requests": 100, "per": "1s"},
            "allow": ["10.0.0.0/8", "192.0.2.1/32"],
        });
        assert_eq!(
            settings(&spec),
            ["rate limit   per 1s, requests 100", "allowed      10.0.0.0/8, 192.0.2.1/32"]
        );
    }

    #[test]
    fn times_are_said_for_people() {
        let some = v1::RouteNumbers {
            requests: 3,
            p50_us: Some(500),
            p95_us: Some(2_000),
            p99_us: None,
            ..v1::RouteNumbers::default()
        };
        assert_eq!(numbers(&some), "3, 0 failed, 0 under way; 50% in 0.5 ms, 95% in 2 ms, 99% in more");
        assert_eq!(numbers(&v1::RouteNumbers::default()), "0, 0 failed, 0 under way");
    }
}
