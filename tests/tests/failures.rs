//! What a cluster does when parts of it die: whatever runs goes on, what is lost is made anew elsewhere, nothing is doubled, and
//! what is not ours is left alone.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::Value;
use wharf_tests::{
    Fleet, items, skip,
    state::{
        NOTICED, SETTLING, all_containers, ask, containers, live, node, traffic, wait_for_state, wait_settled,
    },
    text, wait_until,
};

const SHOP: &str = "
name: shop
services:
  web:
    image: wharf/testserver:1
    ports: ['8080:8080']
    deploy: {replicas: 3}
  db:
    image: wharf/testserver:1
    volumes: [data:/data]
    deploy:
      placement:
        constraints: [node.hostname != n1]
volumes: {data: {}}
";

#[test]
fn containers_outlive_agent_engine_and_server_and_what_is_not_ours_is_left_alone() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    for node in fleet.cluster.nodes() {
        let run = ["run", "--detach", "--name"];
        node.docker(run.into_iter().chain(["by-hand", "wharf/testserver:1"])).unwrap();
        // What another cluster left here, by the labels that ours are known by.
        let foreign = [
            "foreign",
            "--label",
            "wharf.cluster=0000000000000000",
            "--label",
            "wharf.task=task_01a1fee4ed337f078c9e6961b1b11192",
        ];
        node.docker(run.into_iter().chain(foreign).chain(["wharf/testserver:1"])).unwrap();
        node.docker(["network", "create", "by-hand"]).unwrap();
        node.docker(["network", "create", "--label", "wharf.cluster=0000000000000000", "foreign"]).unwrap();
        node.docker(["volume", "create", "by-hand"]).unwrap();
        node.docker(["volume", "create", "--label", "wharf.cluster=0000000000000000", "foreign"]).unwrap();
    }
    let not_ours = all_containers(&fleet);
    let things = || -> Vec<String> {
        let list = |node: wharf_testkit::cluster::Node, what| {
            let said = node.docker([what, "ls", "--format", "{{.Name}}"]).unwrap();
            said.lines()
                .filter(|name| ["by-hand", "foreign"].contains(name))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        ["network", "volume"]
            .into_iter()
            .flat_map(|what| fleet.cluster.nodes().into_iter().flat_map(move |node| list(node, what)))
            .collect()
    };
    let made = things();
    assert_eq!(made.len(), 8, "{made:?}");

    let file = fleet.file("shop", SHOP);
    fleet.ok(["up", "-y", "-f", &file]);
    let all = [("db", 1), ("web", 3)];
    wait_settled(&fleet, "shop", &all);
    let before = all_containers(&fleet);
    let untouched = |what: &str| {
        fleet.wait_for_nodes().unwrap();
        wait_settled(&fleet, "shop", &all);
        assert_eq!(all_containers(&fleet), before, "{what} touched no container");
    };

    let agent = fleet.node(2).service("wharf");
    agent.kill().unwrap();
    wait_for_state(&fleet, "n2", "unreachable");
    agent.start().unwrap();
    untouched("the death of an agent");

    fleet.node(2).engine_kill().unwrap();
    let down = wait_for_state(&fleet, "n2", "engine-down");
    assert!(text(&down["reason"]).contains("Docker Engine"), "{down}");
    let doctor = fleet.wharf(["doctor"]);
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("engine-down") && doctor.stdout.contains("hint: "), "{doctor:?}");
    assert_eq!(live(&fleet, "shop").unwrap().len(), 4, "its tasks are not given up");
    fleet.node(2).engine_start().unwrap();
    untouched("the death of an engine");
    fleet.node(2).engine_stop().unwrap();
    wait_for_state(&fleet, "n2", "engine-down");
    fleet.node(2).engine_start().unwrap();
    untouched("a stop of an engine");

    let server = fleet.node(1).service("wharf");
    server.kill().unwrap();
    let alone = fleet.wharf(["ps", "-p", "shop"]);
    assert_eq!(alone.code, 1, "{alone:?}");
    assert!(alone.stderr.contains("cannot reach the cluster"), "{alone:?}");
    assert!(alone.stderr.contains("hint: "), "{alone:?}");
    let gateway = SocketAddr::from((fleet.node(2).address(), 8080));
    let serves = || fleet.cluster.in_network(|| ask(gateway))?;
    wait_until(NOTICED, "n2 serves without any server", serves);
    assert_eq!(containers(&fleet, 2), before[1]);
    // An agent that starts while no server answers has its orders from its disk.
    agent.kill().unwrap();
    agent.start().unwrap();
    wait_until(NOTICED, "n2 serves after a restart without any server", serves);
    server.start().unwrap();
    untouched("the death of the server");

    // A task that ends while no server answers is noticed as soon as one does.
    server.kill().unwrap();
    let one = "label=wharf.app=shop";
    let victim = fleet.node(2).docker(["ps", "--quiet", "--filter", one]).unwrap();
    let victim = victim.lines().next().unwrap().to_owned();
    fleet.node(2).docker(["kill", &victim]).unwrap();
    server.start().unwrap();
    fleet.wait_for_nodes().unwrap();
    wait_settled(&fleet, "shop", &all);

    fleet.ok(["down", "-y", "-p", "shop"]);
    wait_until(SETTLING, "nothing of the app is left", || {
        let left = all_containers(&fleet);
        ensure!(left == not_ours, "{left:?}");
        Ok::<_, anyhow::Error>(())
    });
    assert_eq!(things(), made);
}

/// Asks for `/` over a connection that stays open.
fn ask_again(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut answer = [0; 1000];
    match stream.read(&mut answer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[test]
fn what_a_dead_machine_ran_runs_elsewhere_and_never_twice() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    let file = fleet.file("shop", SHOP);
    fleet.ok(["up", "-y", "-f", &file]);
    let all = [("db", 1), ("web", 3)];
    wait_settled(&fleet, "shop", &all);
    let tasks = live(&fleet, "shop").unwrap();
    let home =
        tasks.iter().find(|task| task["service"] == "db").map(|task| text(&task["node"]).to_owned()).unwrap();
    let victim = fleet.node(if home == "n2" { 2 } else { 3 });
    let other = if home == "n2" { 3 } else { 2 };

    // Power.
    let gateway = SocketAddr::from((fleet.node(1).address(), 8080));
    let stop = AtomicBool::new(false);
    // One connection to each task, as they go where there are fewest.
    let connect = || -> io::Result<Vec<TcpStream>> {
        let connect = |_| {
            let mut stream = TcpStream::connect_timeout(&gateway, NOTICED)?;
            stream.set_read_timeout(Some(NOTICED))?;
            ask_again(&mut stream).map(|()| stream)
        };
        (0..3).map(connect).collect()
    };
    let mut held = fleet.cluster.in_network(connect).unwrap().unwrap();
    let on_it = tasks.iter().filter(|task| task["service"] == "web" && task["node"] == home).count();
    thread::scope(|scope| {
        let asking = scope.spawn(|| traffic(&fleet, gateway, &stop));
        let begin = Instant::now();
        victim.power_off().unwrap();
        wait_for_state(&fleet, &home, "unreachable");
        let unreachable = begin.elapsed();
        wait_for_state(&fleet, &home, "down");
        let down = begin.elapsed();
        wait_until(SETTLING, "its replicated tasks run elsewhere", || {
            let tasks = live(&fleet, "shop")?;
            let elsewhere =
                |task: &&Value| task["service"] == "web" && task["ready"] == true && task["node"] != home;
            ensure!(tasks.iter().filter(elsewhere).count() == 3, "{tasks:?}");
            Ok::<_, anyhow::Error>(())
        });
        let moved = begin.elapsed();
        stop.store(true, Ordering::Relaxed);
        let (answers, gap) = asking.join().unwrap();
        println!(
            "power off: unreachable after {:.1} s, down after {:.1} s, everything runs elsewhere after {:.1} s; {answers} answers, longest gap {:.2} s",
            unreachable.as_secs_f32(),
            down.as_secs_f32(),
            moved.as_secs_f32(),
            gap.as_secs_f32(),
        );
        assert!(answers > 100, "{answers}");
        assert!(gap < Duration::from_secs(10), "traffic goes on through the other gateways: {gap:?}");
    });
    let ended = held.iter_mut().filter_map(|stream| ask_again(stream).err());
    let ended: Vec<_> = ended.map(|error| error.kind()).collect();
    let is_reset =
        |kind: &io::ErrorKind| matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    assert!(ended.iter().all(is_reset), "nobody waits for the dead: {ended:?}");
    assert_eq!((ended.len(), on_it), (on_it, 1), "what goes on elsewhere goes on: {ended:?}");
    let waiting = fleet.wharf(["ps", "-p", "shop"]);
    let said = waiting.stderr.lines().find(|line| line.starts_with("waiting: ")).unwrap_or_default();
    assert!(said.contains("db") && said.contains("data") && said.contains(&home), "{waiting:?}");

    victim.boot().unwrap();
    fleet.wait_for_nodes().unwrap();
    wait_settled(&fleet, "shop", &all);

    // The network cable, for longer than the lease: it runs on alone, and what it ran elsewhere meanwhile is ended when it is back.
    fleet.ok(["scale", "-p", "shop", "web=5"]);
    wait_settled(&fleet, "shop", &[("db", 1), ("web", 5)]);
    let lonely = fleet.node(other);
    let name = lonely.name();
    lonely.isolate().unwrap();
    wait_for_state(&fleet, &name, "down");
    assert!(!containers(&fleet, other).is_empty(), "it carries on alone");
    fleet.cluster.heal().unwrap();
    wait_for_state(&fleet, &name, "ready");
    wait_settled(&fleet, "shop", &[("db", 1), ("web", 5)]);

    // Drained, and removed.
    fleet.ok(["scale", "-p", "shop", "web=3"]);
    wait_settled(&fleet, "shop", &all);
    fleet.ok(["node", "drain", &name]);
    let drained = node(&fleet, &name).unwrap();
    assert_eq!((&drained["tasks"], text(&drained["availability"])), (&Value::from(0), "drain"));
    wait_settled(&fleet, "shop", &all);
    fleet.ok(["node", "rm", "-y", &name]);
    let nodes = fleet.json(["node", "ls"]);
    assert_eq!(items(&nodes).len(), 2, "{nodes}");
    let agent = lonely.service("wharf");
    wait_until(NOTICED, "the agent says why it gets nowhere", || {
        let log = agent.log();
        ensure!(log.contains("it was revoked") && log.contains("wharf agent join --force"), "{log}");
        Ok::<_, anyhow::Error>(())
    });
    agent.restart().unwrap();
    let line = fleet.json(["token", "create"]);
    let line = text(&line["command"]).to_owned();
    let again = lonely.exec(line.split_whitespace()).unwrap();
    assert!(!again.is_success() && again.stderr.contains("hint: "), "joining again is a decision: {again:?}");
    agent.stop().unwrap();
    lonely.run(line.split_whitespace().chain(["--force"])).unwrap();
    agent.start().unwrap();
    fleet.wait_for_nodes().unwrap();
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

fn app(version: u64, replicas: u64) -> String {
    format!(
        "
name: app
services:
  api:
    image: wharf/testserver:1
    environment: {{VERSION: '{version}'}}
    deploy: {{replicas: {replicas}}}
  worker:
    image: wharf/testserver:1
    environment: {{VERSION: '{version}', START_DELAY_MS: '200'}}
    depends_on: {{api: {{condition: service_started}}}}
"
    )
}

#[test]
fn a_server_that_dies_amid_deployments_finishes_the_last_one() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(2);
    let server = fleet.node(1).service("wharf");
    let mut dice = Dice(0x5EED_0001);
    fleet.ok(["up", "-y", "-f", &fleet.file("app", &app(0, 2))]);
    for version in 1..=4 {
        let file = fleet.file("app", &app(version, 2 + version % 3));
        let mut up = fleet.spawn(["up", "-y", "-f", &file]);
        wait_until(SETTLING, "the deployment has begun", || {
            ensure!(up.log().contains("app-api-"), "{}", up.log());
            Ok::<_, anyhow::Error>(())
        });
        // A different moment of the deployment each time; what is tested is that there is no bad one.
        thread::sleep(Duration::from_millis(dice.roll(1500)));
        server.kill().unwrap();
        server.start().unwrap();
        assert_eq!(up.wait(SETTLING).unwrap(), 0, "it goes on with the server that comes back: {}", up.log());
    }
    fleet.wait_for_nodes().unwrap();
    let file = fleet.file("app", &app(4, 3));
    let last = fleet.wharf(["up", "-y", "-f", &file]);
    assert!(last.is_success(), "{last:?}");
    wait_settled(&fleet, "app", &[("api", 3), ("worker", 1)]);
    wait_until(SETTLING, "everything is of the last version", || {
        for node in fleet.cluster.nodes() {
            let ids = node.docker(["ps", "--quiet", "--filter", "label=wharf.app=app"])?;
            for id in ids.split_whitespace() {
                let environment = node.docker(["inspect", "--format", "{{.Config.Env}}", id])?;
                ensure!(environment.contains("VERSION=4"), "{environment}");
            }
        }
        Ok::<_, anyhow::Error>(())
    });
    let again = fleet.wharf(["up", "-y", "-f", &file]);
    assert!(again.is_success() && again.stderr.contains("nothing to do"), "{again:?}");
}

#[test]
fn after_a_minute_of_accidents_exactly_what_is_wanted_runs() {
    if skip() {
        return;
    }
    let fleet = Fleet::start(3);
    #[expect(clippy::disallowed_methods, reason = "whoever runs a test chooses its seed")]
    let seed = std::env::var("WHARF_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    println!("WHARF_SEED={seed}");
    let mut dice = Dice(seed);
    fleet.ok(["up", "-y", "-f", &fleet.file("app", &app(0, 3))]);
    let begin = Instant::now();
    let (mut version, mut accidents) = (0, 0);
    while begin.elapsed() < Duration::from_secs(60) {
        let index = u8::try_from(1 + dice.roll(3)).unwrap();
        let victim = fleet.node(index);
        let service = victim.service("wharf");
        match dice.roll(4) {
            0 | 1 => {
                service.kill().unwrap();
                thread::sleep(Duration::from_millis(dice.roll(1500)));
                service.start().unwrap();
            }
            2 => {
                victim.engine_kill().unwrap();
                thread::sleep(Duration::from_millis(dice.roll(1500)));
                victim.engine_start().unwrap();
            }
            _ => {
                let ids = victim.docker(["ps", "--quiet", "--filter", "label=wharf.app=app"]).unwrap();
                if let Some(id) = ids.split_whitespace().next() {
                    // It may be stopped meanwhile, which is as good.
                    drop(victim.docker(["kill", id]));
                }
            }
        }
        accidents += 1;
        // People go on working; what they are refused meanwhile is their business.
        let replicas = 1 + dice.roll(5);
        match dice.roll(3) {
            0 => {
                version += 1;
                let file = fleet.file("app", &app(version, replicas));
                drop(fleet.try_wharf(["up", "-y", "--detach", "--supersede", "-f", &file]));
            }
            1 => drop(fleet.try_wharf(["scale", "--detach", "-p", "app", &format!("api={replicas}")])),
            _ => {}
        }
    }
    fleet.wait_for_nodes().unwrap();
    let file = fleet.file("app", &app(version + 1, 4));
    let last = fleet.wharf(["up", "-y", "--supersede", "-f", &file]);
    println!("{accidents} accidents");
    assert!(last.is_success(), "{last:?}");
    wait_settled(&fleet, "app", &[("api", 4), ("worker", 1)]);
    assert!(accidents > 3, "{accidents}: this machine was too busy to say anything");
}
