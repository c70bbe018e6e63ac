//! Machines with a server each, on an etcd whose members run beside them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use wharf_testkit::cluster::{Cluster, Seed, try_wait_until, wait_until};

use crate::{Fleet, items, text};

const SETTLING: Duration = Duration::from_secs(60);

/// Three machines, each with a member of etcd, a server and an agent. The client has the contexts `s1`, `s2`, `s3`, which
/// know one server each, and `all`.
pub fn three_servers() -> Result<Fleet> {
    let binary = crate::wharf_binary()?;
    let cluster = Cluster::builder().nodes(3).seed(Seed::basic()?).up()?;
    cluster.install(&binary)?;
    let copy = cluster.dir().join("client/wharf");
    std::fs::copy(&binary, &copy)?;

    let url = |index: u8, port: u16| format!("http://{}:{port}", cluster.node(index).address());
    let members: Vec<_> = (1..=3).map(|index| format!("n{index}={}", url(index, 2380))).collect();
    for index in 1..=3 {
        let (peer, client) = (url(index, 2380), url(index, 2379));
        let etcd = cluster.node(index).service("etcd");
        etcd.run([
            "etcd",
            "--name",
            &format!("n{index}"),
            "--data-dir",
            "/var/lib/etcd",
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--initial-cluster",
            &members.join(","),
        ])?;
    }
    let endpoints = (1..=3).map(|index| url(index, 2379)).collect::<Vec<_>>().join(",");
    try_wait_until(SETTLING, "etcd is healthy", || {
        let arguments = ["ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoints, "endpoint", "health"];
        cluster.node(1).run(["env"].into_iter().chain(arguments))
    })?;

    let first = cluster.node(1);
    let join_line = first.run(["wharf", "server", "init", "--name", "test", "--etcd", &endpoints])?;
    let context = first.run(["wharf", "context", "export"])?;
    let file = cluster.dir().join("client/context.json");
    std::fs::write(&file, context)?;
    let fleet = Fleet { cluster, binary: copy, join_line };
    let servers = (1..=3).map(|index| fleet.node(index).address().to_string()).collect::<Vec<_>>();
    for (name, servers) in
        [("s1", &servers[..1]), ("s2", &servers[1..2]), ("s3", &servers[2..]), ("all", &servers[..])]
    {
        fleet.ok(["context", "import", name, &file.display().to_string()]);
        let named = servers.iter().flat_map(|server| ["--server", server.as_str()]);
        fleet.ok(["context", "set", name].into_iter().chain(named));
    }
    fleet.ok(["context", "use", "all"]);

    let serve =
        |index: u8| fleet.node(index).service("wharf").run(["wharf", "server", "run", "--with-agent"]);
    serve(1)?;
    try_wait_until(SETTLING, "the first server answers", || {
        fleet.try_wharf(["--context", "s1", "version"])?.text()
    })?;
    let line = fleet.ok(["--context", "s1", "token", "create", "--role", "server"]);
    for index in 2..=3 {
        fleet.node(index).run(line.split_whitespace())?;
        serve(index)?;
    }
    fleet.wait_for_nodes()?;
    fleet.cluster.nodes().iter().try_for_each(|node| fleet.share_disk(node))?;
    try_wait_until(SETTLING, "all servers know each other", || {
        let nodes = fleet.try_json(["node", "ls"])?;
        let roles =
            items(&nodes).iter().filter(|node| items(&node["roles"]).iter().any(|role| role == "server"));
        ensure!(roles.count() == 3, "{nodes}");
        Ok(())
    })?;
    Ok(fleet)
}

/// What one server says: its own id, and who leads.
pub fn version(fleet: &Fleet, context: &str) -> Result<(String, String)> {
    let version = fleet.try_json(["--context", context, "version"])?;
    let server = &version["server"];
    Ok((text(&server["server"]).to_owned(), text(&server["leader"]).to_owned()))
}

/// Which machine's server leads.
pub fn leader(fleet: &Fleet) -> u8 {
    let id = |index: u8| Some((version(fleet, &format!("s{index}")).ok()?.0, index));
    let ids: BTreeMap<String, u8> = (1..=3).filter_map(id).collect();
    wait_until(SETTLING, "somebody leads", || {
        let led = version(fleet, "all")?.1;
        ids.get(&led).copied().ok_or_else(|| anyhow::anyhow!("`{led}` leads, of {ids:?}"))
    })
}
