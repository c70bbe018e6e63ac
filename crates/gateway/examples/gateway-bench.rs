//! A gateway that serves one table, to be measured: `gateway-bench TABLE.json [WORKERS]`, or
//! `gateway-bench --to PORT=ADDRESS[,ADDRESS…] … [--workers N] [--routes N]` for HTTP at these ports of the node.
//!
//! It says `ready` when it serves, and ends when its input does. Written for `./x bench gateway`; no part of the product.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for scripts")]

use std::{collections::BTreeMap, net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, bail};
use tokio::io::AsyncReadExt as _;
use wharf_gateway::{AccessLog, Gateway, GatewayOptions, HttpOptions};
use wharf_model::{
    AppKey, Endpoint, EndpointSet, Generation, Revision, RouteId, RouteSpec, RouteTable, ServiceKey,
    ServiceRoute, TaskId,
};
use wharf_process::{Shutdown, Tasks};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let mut table = RouteTable { version: Revision(1), ..RouteTable::default() };
    let (mut workers, mut others) = (1, 0);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().context("a value is missing");
        match word.as_str() {
            "--to" => {
                let number = u16::try_from(table.services.len())?;
                table.services.push(route(number, &value()?)?);
            }
            "--workers" => workers = value()?.parse()?,
            "--routes" => others = value()?.parse()?,
            file if !file.starts_with('-') => table = serde_json::from_slice(&std::fs::read(file)?)?,
            other => bail!("unknown: {other}"),
        }
    }
    // Beside what is asked for: what a large cluster has.
    if let Some(first) = table.services.first().cloned() {
        for number in 0..others {
            let mut route = first.clone();
            route.id.number = u16::try_from(1000 + number)?;
            route.spec.hosts = vec![format!("host-{number}.example.com")];
            table.services.push(route);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::new(&Shutdown::new());
        let requests = HttpOptions { workers, ..HttpOptions::default() };
        let gateway = Gateway::with(GatewayOptions::default(), requests, &tasks, AccessLog::new(None));
        gateway.apply(&table).await;
        for problem in gateway.problems() {
            eprintln!("{problem}");
        }
        println!("ready");
        let mut rest = Vec::new();
        tokio::io::stdin().read_to_end(&mut rest).await?;
        drop(tasks.shutdown(Duration::ZERO).await);
        Ok(())
    })
}

/// `PORT=ADDRESS,ADDRESS`
fn route(number: u16, text: &str) -> anyhow::Result<ServiceRoute> {
    let (port, addresses) = text.split_once('=').context("PORT=ADDRESS")?;
    let app = AppKey { environment: "prod".parse()?, name: "bench".parse()? };
    let service = ServiceKey { app, name: "web".parse()? };
    let endpoint = |(number, address): (usize, &str)| {
        let address: SocketAddrV4 = address.parse()?;
        let task = TaskId::from_parts(1, [u8::try_from(number + 1)?; 10]);
        anyhow::Ok(Endpoint::new(task, address))
    };
    let endpoints = addresses.split(',').enumerate().map(endpoint).collect::<Result<_, _>>()?;
    let mut spec: RouteSpec = serde_json::from_value(serde_json::json!({ "port": 80 }))?;
    spec.listen = Some(port.parse()?);
    spec.headers = BTreeMap::new();
    Ok(ServiceRoute {
        id: RouteId { service, number, preview: false },
        spec,
        sets: vec![EndpointSet { generation: Generation(1), weight: 1, endpoints }],
        fallback: Vec::new(),
        mirror: Vec::new(),
        users: Default::default(),
    })
}
