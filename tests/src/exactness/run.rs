//! Keeps an app changing on real nodes, breaks things, and gathers what is answered meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use wharf_testkit::cluster::{Node, clock::Step, try_wait_until};

use super::{
    ask::Observer,
    check::{Fault, Heard, Question, Run, Said, Scenario},
    truth::Truth,
};
use crate::Fleet;

const APP: &str = "shop";
/// The service whose tasks' networks are asked from: one on each node, and never changed.
const EYE: &str = "eye";
const SERVICES: [&str; 4] = ["web", "api", "solo", "steady"];
/// Whose tasks are killed, in turn.
const VICTIMS: [&str; 5] = ["web", "api", "web", "solo", "api"];
/// Between a task's death and the next.
const KILLS: Duration = Duration::from_secs(1);
/// Between a change of the app and the next.
const CHANGES: Duration = Duration::from_secs(4);
/// Between an observer's rounds of questions.
const ROUNDS: Duration = Duration::from_millis(50);
/// For what is waited for.
const SOON: Duration = Duration::from_secs(60);
/// How long answers may take to be exact once nothing changes any more.
const SETTLING: Duration = Duration::from_secs(40);

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Nothing: tasks come and go.
    Nothing,
    /// The agent of this node is killed, and started again at once.
    Agent(u8),
    /// The engine of this node is killed, and started again after this.
    Engine(u8, Duration),
    /// The server is killed, with the agent beside it, and started again after this.
    Server(Duration),
    /// This node and the server's cannot reach each other for so long.
    Partition(u8, Duration),
    /// This node reaches nobody for so long.
    Isolation(u8, Duration),
    /// This node loses its power, and gets it again after this.
    Power(u8, Duration),
    /// The clock of this node's server and agent is set, and set right after this.
    Clock(u8, Step, Duration),
}

impl Break {
    fn name(self) -> String {
        match self {
            Self::Nothing => "constant change".to_owned(),
            Self::Agent(node) => format!("agent n{node} kill -9"),
            Self::Engine(node, away) => format!("engine n{node} kill -9, {} s away", away.as_secs()),
            Self::Server(away) => format!("server kill -9, {} s away", away.as_secs()),
            Self::Partition(node, lasts) => format!("n{node} cut off from the server {} s", lasts.as_secs()),
            Self::Isolation(node, lasts) => format!("n{node} cut off from all {} s", lasts.as_secs()),
            Self::Power(node, lasts) => format!("n{node} without power {} s", lasts.as_secs()),
            Self::Clock(node, Step::Ahead(by), _) => format!("clock of n{node} {} s ahead", by.as_secs()),
            Self::Clock(node, Step::Back(by), _) => format!("clock of n{node} {} s back", by.as_secs()),
            Self::Clock(node, Step::Right, _) => format!("clock of n{node} right"),
        }
    }
}

/// What is done in which order, and how long each is looked at after it was mended.
pub type Plan = Vec<(Break, Duration)>;

fn file(version: u32) -> String {
    let web = if version.is_multiple_of(2) { 4 } else { 3 };
    format!(
        "
name: {APP}
x-common: &common
  image: wharf/testserver:1
  stop_grace_period: 5s
services:
  web:
    <<: *common
    networks: {{default: {{aliases: [www]}}}}
    deploy: {{replicas: {web}, restart_policy: {{condition: any, delay: 0s, window: 500ms}}}}
  api:
    <<: *common
    environment: {{VERSION: '{}'}}
    deploy: {{replicas: 3, restart_policy: {{condition: any, delay: 0s, window: 500ms}}}}
  solo:
    <<: *common
    deploy: {{restart_policy: {{condition: any, delay: 0s, window: 500ms}}}}
  steady:
    <<: *common
    deploy: {{replicas: 2}}
  {EYE}:
    <<: *common
    deploy: {{mode: global}}
",
        version / 2
    )
}

fn questions() -> Vec<Question> {
    let of = |name: String, service: &str| Question::Service { name, service: service.to_owned() };
    let mut all: Vec<_> = SERVICES
        .iter()
        .flat_map(|service| [of((*service).to_owned(), service), of(format!("tasks.{service}"), service)])
        .collect();
    all.push(of("www".to_owned(), "web"));
    all.push(of(format!("web.{APP}"), "web"));
    let tasks = [("web.1", "web-1"), ("shop-web-2", "web-2"), ("shop-api-1", "api-1"), ("solo.1", "solo-1")];
    all.extend(
        tasks.map(|(name, task)| Question::Task { name: name.to_owned(), task: format!("{APP}-{task}") }),
    );
    all
}

/// Goes through `plan` on three nodes or more; node 1 has the server, which is a process of its own.
///
/// # Errors
/// If the cluster cannot be had, or does not come to rest.
pub fn run(fleet: &Fleet, plan: &Plan) -> Result<Run> {
    let sets_clocks = plan.iter().any(|(what, _)| matches!(what, Break::Clock(..)));
    ensure!(!sets_clocks || fleet.has_clocks()?, "the program asks the kernel itself what time it is");
    fleet.run_apart(sets_clocks)?;
    let truth = Truth::new(APP);
    let (heard, stop, changing) = (Mutex::new(Vec::new()), AtomicBool::new(false), AtomicBool::new(true));
    let nodes = fleet.cluster.nodes();
    let questions = questions();
    fleet.try_wharf(["up", "-y", "-f", &fleet.file(APP, &file(0))])?.text()?;
    let mut run = Run::default();
    let result = thread::scope(|scope| {
        scope.spawn(|| truth.watch(&nodes, &stop));
        let (truth, heard, questions, stop) = (&truth, &heard, &questions[..], &stop);
        for node in &nodes {
            let observer =
                Observer { node: node.index(), service: EYE, truth, questions, pause: ROUNDS, heard };
            scope.spawn(move || observer.run(stop));
        }
        let mut act = || -> Result<()> {
            try_wait_until(SOON, "every node is asked and answers right", || settled(truth, heard, &nodes))?;
            // What was before everything was there counts for nothing.
            heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let began = truth.now();
            scope.spawn(|| changes(fleet, truth, &changing, stop));
            for (what, after) in plan {
                let from = if run.scenarios.is_empty() { began } else { truth.now() };
                breaking(fleet, truth, *what, &mut run.faults)?;
                thread::sleep(*after);
                run.scenarios.push(Scenario { name: what.name(), from, until: truth.now() });
            }
            changing.store(false, Ordering::Relaxed);
            let from = truth.now();
            let settled = try_wait_until(SETTLING, "every answer is right once nothing changes", || {
                settled(truth, heard, &nodes)
            });
            run.scenarios.push(Scenario { name: "rest".to_owned(), from, until: truth.now() });
            settled
        };
        let result = act();
        stop.store(true, Ordering::Relaxed);
        result
    });
    run.end = truth.now();
    run.lives = truth.lives();
    run.heard = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.map(|()| run)
}

/// Kills tasks and changes the app, until `stop`, while `changing`.
fn changes(fleet: &Fleet, truth: &Truth, changing: &AtomicBool, stop: &AtomicBool) {
    let kills = AtomicUsize::new(0);
    let go_on = || changing.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| {
            while go_on() {
                let turn = kills.fetch_add(1, Ordering::Relaxed);
                let service = VICTIMS[turn % VICTIMS.len()];
                // One that has only begun is not yet answered anywhere.
                let grown = truth.now().saturating_sub(Duration::from_secs(1));
                let running = truth.running();
                let victims: Vec<_> = running
                    .iter()
                    .filter(|tracked| tracked.life.service == service && tracked.life.ready < grown)
                    .collect();
                if let Some(victim) = victims.get(turn / VICTIMS.len() % victims.len().max(1)) {
                    truth.kill(victim);
                }
                thread::sleep(KILLS);
            }
        });
        let mut version = 0;
        while go_on() {
            version += 1;
            let path = fleet.file(APP, &file(version));
            // Without a server it fails, and the next one comes.
            let _ = fleet.try_wharf(["up", "-y", "--detach", "--supersede", "-f", &path]);
            thread::sleep(CHANGES);
        }
    });
}

/// Breaks something and mends it again; what nobody can know meanwhile is added to `faults`.
fn breaking(fleet: &Fleet, truth: &Truth, what: Break, faults: &mut Vec<Fault>) -> Result<()> {
    let from = truth.now();
    let only = |node: u8| Some(BTreeSet::from([node]));
    let mut add = |on, of, until, ends_are_heard| {
        faults.push(Fault { what: what.name(), from, until, on, of, ends_are_heard });
    };
    match what {
        Break::Nothing => {}
        Break::Agent(node) => {
            let agent = fleet.node(node).service("wharf");
            agent.kill()?;
            agent.start()?;
            let until = truth.now();
            add(None, only(node), until, false);
            add(only(node), None, until, false);
        }
        Break::Engine(node, away) => {
            let machine = fleet.node(node);
            machine.engine_kill()?;
            thread::sleep(away);
            machine.engine_start()?;
            add(None, only(node), truth.now(), false);
        }
        Break::Server(away) => {
            let server = fleet.node(1).service("server");
            server.kill()?;
            thread::sleep(away);
            server.start()?;
            // Of what ends nodes tell each other. That a task is ready counts once a server says so, on its own node, too.
            let all = fleet.cluster.nodes().iter().map(Node::index).collect();
            add(None, Some(all), truth.now(), true);
        }
        Break::Partition(node, lasts) => {
            fleet.cluster.partition(1, node)?;
            thread::sleep(lasts);
            fleet.cluster.heal()?;
            let until = truth.now();
            // The server's machine has tasks, too. What ends elsewhere nodes tell each other.
            add(only(node), only(1), until, false);
            add(only(1), only(node), until, false);
            add(only(node), None, until, true);
            add(others(fleet, node), only(node), until, true);
        }
        Break::Isolation(node, lasts) => {
            fleet.node(node).isolate()?;
            thread::sleep(lasts);
            fleet.cluster.heal()?;
            let until = truth.now();
            add(only(node), None, until, false);
            add(others(fleet, node), only(node), until, false);
        }
        Break::Power(node, lasts) => {
            truth.power_off(node);
            fleet.node(node).power_off()?;
            thread::sleep(lasts);
            fleet.node(node).boot()?;
        }
        // Nothing that anybody could not know.
        Break::Clock(node, step, lasts) => {
            fleet.node(node).set_clock(step)?;
            thread::sleep(lasts);
            fleet.node(node).set_clock(Step::Right)?;
        }
    }
    Ok(())
}

fn others(fleet: &Fleet, node: u8) -> Option<BTreeSet<u8>> {
    Some(fleet.cluster.nodes().iter().map(Node::index).filter(|other| *other != node).collect())
}

/// Whether every node's latest answers about every service are exactly the tasks that run.
fn settled(truth: &Truth, heard: &Mutex<Vec<Heard>>, nodes: &[Node]) -> Result<()> {
    let since = truth.now();
    // Answers to questions that were asked from now on.
    thread::sleep(ROUNDS * 6);
    let running = truth.running();
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    for node in nodes {
        for service in SERVICES {
            let about = |heard: &&Heard| {
                let asked = matches!(&heard.question, Question::Service { name, .. } if name == service);
                heard.node == node.index() && asked && heard.asked >= since
            };
            let wanted: BTreeSet<_> = running
                .iter()
                .filter(|tracked| tracked.life.service == service)
                .map(|tracked| tracked.life.address)
                .collect();
            let said: BTreeSet<_> = match heard.iter().rev().find(about).map(|heard| &heard.said) {
                Some(Said::Addresses(addresses)) => addresses.iter().copied().collect(),
                other => anyhow::bail!("{} says {other:?} of {service}", node.name()),
            };
            ensure!(said == wanted, "{} says {said:?} of {service}, and it is {wanted:?}", node.name());
        }
    }
    Ok(())
}
