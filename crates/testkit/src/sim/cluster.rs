//! A simulated cluster at work: its machines, the people who ask things of it, and what goes wrong.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use wharf_model::{
    AddressPool, AppKey, Availability, Generation, NodeId, NodeRecord, NodeState, NodeStatus, Roles,
    Timestamp,
};
use wharf_process::{Shutdown, Tasks};
use wharf_server::{
    pki::Authority,
    records::{ClusterRecord, Key, NodeNameRecord, encode},
};
use wharf_store::Batch;

use super::{
    Outcome,
    chance::Dice,
    invariants::Checker,
    life::Life,
    link::{End, Net, Socket},
    node::{Dial, Messages, SimNode},
    rest,
    scenario::{Act, Does, Draft, Scenario, Way},
    server::{Answer, SimServer},
    store::Shelf,
    time::Epoch,
};

/// Between looks at everything.
const LOOK: Duration = Duration::from_secs(1);
/// How long a cluster in which nothing goes wrong any more may take to come to rest.
const SOON: Duration = Duration::from_secs(15 * 60);

/// A cluster.
pub struct Cluster {
    /// Its servers.
    pub servers: Vec<Arc<SimServer>>,
    /// Its nodes.
    pub nodes: Vec<Arc<SimNode>>,
    /// Who sees everything.
    pub checker: Arc<Checker>,
    shelf: Arc<Shelf>,
    net: Arc<Net>,
    messages: Arc<Messages>,
    dial: Arc<dyn Dial>,
    dice: Dice,
    epoch: Epoch,
    counts: Mutex<Counts>,
}
#[derive(Default)]
struct Counts {
    acts: BTreeMap<String, u64>,
    answers: BTreeMap<String, u64>,
    rests: u64,
    longest_rest: u64,
    /// Nodes made so far.
    members: u64,
}

/// The servers, as nodes dial them.
struct Servers(Vec<Arc<SimServer>>);
impl Dial for Servers {
    fn dial(
        &self,
        server: usize,
        from: End,
        node: NodeId,
        serial: &str,
        dead: Arc<AtomicBool>,
    ) -> Option<Socket> {
        self.0.get(server)?.accept(from, node, serial, dead)
    }
    fn servers(&self) -> usize {
        self.0.len()
    }
}

/// Plays a scenario; called on the paused runtime of the cluster's thread.
pub(super) async fn play(scenario: &Scenario, folder: &Path, panics: Arc<Mutex<Option<String>>>) -> Outcome {
    let cluster = Cluster::begin(scenario, folder);
    let people = Tasks::new(&Shutdown::new());
    let mut faults = Tasks::new(&Shutdown::new());
    let mut looks = 0;
    for step in &scenario.steps {
        let until = tokio::time::Instant::now() + Duration::from_millis(step.after);
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            tokio::time::sleep(left.min(LOOK)).await;
            cluster.look(&mut looks, &panics);
            if cluster.checker.first().is_some() || left <= LOOK {
                break;
            }
        }
        if cluster.checker.first().is_some() {
            break;
        }
        cluster.count(step.act.kind());
        cluster.checker.note(&step.act.kind());
        if step.act == Act::Rest {
            faults.abort();
            faults = Tasks::new(&Shutdown::new());
            cluster.heal();
            cluster.come_to_rest(&mut looks, &panics).await;
        } else {
            cluster.perform(&step.act, &people, &faults);
        }
    }
    faults.abort();
    people.abort();
    cluster.outcome()
}

impl Cluster {
    fn begin(scenario: &Scenario, folder: &Path) -> Arc<Self> {
        let epoch = Epoch::now();
        let seed = scenario.seed;
        let checker = Arc::new(Checker::new(epoch));
        let shelf = Arc::<Shelf>::default();
        let witness = Arc::clone(&checker);
        shelf.show(move |events| witness.committed(events));
        let net = Net::new(Dice::new(seed, "net"));
        let messages = Messages::new(Dice::new(seed, "messages"));
        let beginning = Timestamp(1_700_000_000_000);
        let cluster = ClusterRecord {
            id: "simulated".to_owned(),
            name: "simulated".to_owned(),
            epoch: 1,
            pool: AddressPool::default(),
            unique_local: None,
            network: Default::default(),
            placement: Default::default(),
            rebalancing: Default::default(),
            created_at: beginning,
        };
        let batch = Batch::new().put(Key::Cluster.to_string(), encode(&Key::Cluster, &cluster));
        shelf.commit(&batch).expect("an empty store takes anything");
        let year = Duration::from_hours(24 * 365);
        let authority = Authority::create("simulated", beginning, year).expect("keys can be made");
        let authority = Arc::new(authority);
        let alone = scenario.servers == 1;
        let servers: Vec<_> = (0..scenario.servers)
            .map(|number| {
                let parts =
                    (Arc::clone(&shelf), Arc::clone(&authority), Arc::clone(&net), Arc::clone(&checker));
                let (shelf, authority, net, checker) = parts;
                SimServer::new(number, alone, seed, shelf, authority, epoch, net, checker)
            })
            .collect();
        let nodes: Vec<_> = (0..scenario.nodes)
            .map(|number| {
                let folder = folder.join(format!("n{number}"));
                let (net, messages, checker) =
                    (Arc::clone(&net), Arc::clone(&messages), Arc::clone(&checker));
                SimNode::new(number, seed, folder, epoch, net, messages, checker)
            })
            .collect();
        for node in &nodes {
            // Weakly: an engine does not keep the machines alive that it is part of.
            let all: Vec<_> = nodes.iter().map(Arc::downgrade).collect();
            let checker = Arc::clone(&checker);
            node.engine.show(move || {
                let running: Vec<_> =
                    all.iter().filter_map(std::sync::Weak::upgrade).map(|node| node.running()).collect();
                checker.looked(&running);
            });
        }
        let cluster = Arc::new(Self {
            dial: Arc::new(Servers(servers.clone())),
            servers,
            nodes,
            checker,
            shelf,
            net,
            messages,
            dice: Dice::new(seed, "people"),
            epoch,
            counts: Mutex::default(),
        });
        for server in &cluster.servers {
            server.start();
        }
        for node in &cluster.nodes {
            cluster.join(node);
            node.start(&cluster.dial);
        }
        cluster
    }

    /// Makes a machine a new node, as the API does when one joins.
    fn join(&self, machine: &SimNode) {
        let count = {
            let mut counts = self.counts.lock();
            counts.members += 1;
            counts.members
        };
        let id = NodeId::from_parts(count, [u8::try_from(machine.number + 1).unwrap_or_default(); 10]);
        let now = Timestamp(1_700_000_000_000 + self.epoch.millis());
        let serial = format!("{:02x}{count:06x}", machine.number);
        let record = NodeRecord {
            id,
            name: machine.name(),
            generation: Generation(1),
            availability: Availability::Active,
            labels: BTreeMap::new(),
            roles: Roles { server: false, gateway: machine.number < 2 },
            joined_at: now,
            certificate: serial.clone(),
            key_rotation: 0,
            available_since: None,
            scheduling: Default::default(),
            disk_marks: Default::default(),
        };
        let status = NodeStatus {
            reason: "it has joined and not connected yet".to_owned(),
            ..NodeStatus::new(NodeState::Joining, now)
        };
        let (node, name, about) = (Key::Node(id), Key::NodeName(machine.name()), Key::NodeStatus(id));
        let batch = Batch::new()
            .expect(name.to_string(), None)
            .put(node.to_string(), encode(&node, &record))
            .put(name.to_string(), encode(&name, &NodeNameRecord { node: id }))
            .put(about.to_string(), encode(&about, &status));
        if self.shelf.commit(&batch).is_ok() {
            machine.join(id, serial);
        }
    }

    fn count(&self, kind: String) {
        *self.counts.lock().acts.entry(kind).or_default() += 1;
    }
    fn answered(&self, what: &str, answer: &Answer) {
        let how = match answer {
            Answer::Done(_) => "done".to_owned(),
            Answer::Refused(code, _) => format!("refused ({code})"),
            Answer::Unknown => "unknown".to_owned(),
        };
        self.checker.note(&how);
        *self.counts.lock().answers.entry(format!("{what} {how}")).or_default() += 1;
    }

    /// Looks at everything there is to see from outside.
    fn look(&self, looks: &mut u64, panics: &Mutex<Option<String>>) {
        *looks += 1;
        if let Some(panic) = panics.lock().take() {
            self.checker.violation("nothing panics", panic);
        }
        let running: Vec<_> = self.nodes.iter().map(|node| node.running()).collect();
        self.checker.looked(&running);
        let leaders = self.servers.iter().filter(|server| server.leads()).count();
        if leaders > 1 {
            self.checker.violation("one server leads", format!("{leaders} believe to"));
        }
        if looks.is_multiple_of(10) {
            for node in &self.nodes {
                node.engine.real.forget_calls();
            }
            for server in self.servers.iter().filter(|server| server.leads()) {
                let (Some(state), Some(now)) = (server.state(), server.now()) else { continue };
                if let Some(silent) = rest::without_reason(&state, now) {
                    self.checker.violation("what is not settled has a reason", silent);
                }
            }
        }
    }

    /// Ends all faults.
    fn heal(&self) {
        self.net.heal();
        self.messages.set(0);
        for server in &self.servers {
            server.condition.heal();
            server.spare();
            server.start();
        }
        for node in &self.nodes {
            node.engine.heal();
            node.set_disk_full(false);
            node.power_on();
            node.spare();
            if node.node().is_none() || node.node().is_some_and(|id| self.is_gone(id)) {
                node.leave();
                self.join(node);
            }
            node.start(&self.dial);
        }
    }
    /// Whether somebody has removed this node.
    fn is_gone(&self, id: NodeId) -> bool {
        self.checker.world(|world| world.node(id).is_none())
    }

    async fn come_to_rest(&self, looks: &mut u64, panics: &Mutex<Option<String>>) {
        let began = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(looks, panics);
            // What was asked before may still have removed a node.
            self.heal_late();
            if self.checker.first().is_some() {
                return;
            }
            let Some(unrest) = rest::unrest(self) else { break };
            if began.elapsed() > SOON {
                self.checker.violation("the cluster comes to rest", unrest);
                return;
            }
        }
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut counts = self.counts.lock();
        counts.rests += 1;
        counts.longest_rest = counts.longest_rest.max(took);
    }
    fn heal_late(&self) {
        for node in self.nodes.iter().filter(|node| node.node().is_none_or(|id| self.is_gone(id))) {
            node.leave();
            self.join(node);
            node.start(&self.dial);
        }
    }

    fn outcome(&self) -> Outcome {
        let (checks, revisions) = self.checker.counts();
        let counts = self.counts.lock();
        Outcome {
            violation: self.checker.first(),
            simulated: self.epoch.millis(),
            revisions,
            checks,
            rests: counts.rests,
            longest_rest: counts.longest_rest,
            trace: self.checker.trace(),
            acts: counts.acts.clone(),
            answers: counts.answers.clone(),
        }
    }

    /// Has it happen; what lasts is taken back by a task of `faults`.
    fn perform(self: &Arc<Self>, act: &Act, people: &Tasks, faults: &Tasks) {
        let later = |lasts: u64, undo: Box<dyn FnOnce() + Send>| {
            faults.spawn("the end of a fault", async move {
                tokio::time::sleep(Duration::from_millis(lasts)).await;
                undo();
            });
        };
        let node = |number: usize| self.nodes.get(number).cloned();
        let server = |number: usize| self.servers.get(number).cloned();
        if act.is_operation() {
            let (cluster, act) = (Arc::clone(self), act.clone());
            // Thrown here, in the order of the scenario.
            let throw = self.dice.any();
            people.spawn("somebody", async move { cluster.operate(&act, throw).await });
            return;
        }
        match act {
            Act::Partition { node, server, way, lasts } => {
                let servers: Vec<_> = match server {
                    Some(server) => vec![*server],
                    None => (0..self.servers.len()).collect(),
                };
                let mut lines = Vec::new();
                for server in servers {
                    let (node, server) = (End::Node(*node), End::Server(server));
                    if matches!(way, Way::From | Way::Both) {
                        lines.push((node, server));
                    }
                    if matches!(way, Way::To | Way::Both) {
                        lines.push((server, node));
                    }
                }
                self.cut(lines, *lasts, &later);
            }
            Act::Apart { node, other, way, lasts } => {
                let (one, other) = (End::Node(*node), End::Node(*other));
                let lines = [(one, other, Way::From), (other, one, Way::To)];
                let lines = lines.into_iter().filter(|(.., direction)| *way == Way::Both || way == direction);
                self.cut(lines.map(|(from, to, _)| (from, to)).collect(), *lasts, &later);
            }
            Act::Isolate { node, lasts } => {
                let here = End::Node(*node);
                let servers = (0..self.servers.len()).map(End::Server);
                let others = (0..self.nodes.len()).map(End::Node).filter(|other| *other != here);
                let lines = servers.chain(others).flat_map(|other| [(here, other), (other, here)]);
                self.cut(lines.collect(), *lasts, &later);
            }
            Act::Reset { node } => self.net.reset_all(End::Node(*node)),
            Act::Lossy { permille, lasts } => {
                self.net.set_lossy(*permille);
                let net = Arc::clone(&self.net);
                later(*lasts, Box::new(move || net.set_lossy(0)));
            }
            Act::Messages { permille, lasts } => {
                self.messages.set(*permille);
                let messages = Arc::clone(&self.messages);
                later(*lasts, Box::new(move || messages.set(0)));
            }
            Act::KillAgent { node: number, calls, lasts } => {
                let Some(node) = node(*number) else { return };
                let Some(life) = node.kill_after(*calls) else { return };
                let (cluster, lasts) = (Arc::clone(self), *lasts);
                faults.spawn("the end of an agent", async move {
                    over(&life).await;
                    node.kill(false);
                    tokio::time::sleep(Duration::from_millis(lasts)).await;
                    node.start(&cluster.dial);
                });
            }
            Act::KillServer { server: number, calls, lasts } => {
                let Some(server) = server(*number) else { return };
                let Some(life) = server.kill_after(*calls) else { return };
                let lasts = *lasts;
                faults.spawn("the end of a server", async move {
                    over(&life).await;
                    server.kill();
                    tokio::time::sleep(Duration::from_millis(lasts)).await;
                    server.start();
                });
            }
            Act::PowerOff { node: number, lasts } => {
                let Some(node) = node(*number) else { return };
                node.power_off();
                let cluster = Arc::clone(self);
                let back = move || {
                    node.power_on();
                    node.start(&cluster.dial);
                };
                later(*lasts, Box::new(back));
            }
            Act::EngineDown { node: number, lasts } => {
                let Some(node) = node(*number) else { return };
                node.engine.real.set_down(true);
                let back = move || {
                    if node.has_power() {
                        node.engine.real.set_down(false);
                    }
                };
                later(*lasts, Box::new(back));
            }
            Act::EngineRestart { node: number } => {
                let Some(node) = node(*number).filter(|node| node.has_power()) else { return };
                node.engine.real.power_cycle();
                node.engine.real.set_down(true);
                let back = move || {
                    if node.has_power() {
                        node.engine.real.set_down(false);
                    }
                };
                later(4_000, Box::new(back));
            }
            Act::EngineSlow { node: number, millis, lasts } => {
                let Some(node) = node(*number) else { return };
                node.engine.set_slow(*millis);
                later(*lasts, Box::new(move || node.engine.set_slow(0)));
            }
            Act::EngineFlaky { node: number, permille, lasts } => {
                let Some(node) = node(*number) else { return };
                node.engine.set_flaky(*permille);
                later(*lasts, Box::new(move || node.engine.set_flaky(0)));
            }
            Act::EngineLies { node: number, permille, lasts } => {
                let Some(node) = node(*number) else { return };
                node.engine.set_lying(*permille);
                later(*lasts, Box::new(move || node.engine.set_lying(0)));
            }
            Act::EngineFull { node: number, lasts } => {
                let Some(node) = node(*number) else { return };
                node.engine.set_full(true);
                later(*lasts, Box::new(move || node.engine.set_full(false)));
            }
            Act::DiskFull { node: number, lasts } => {
                let Some(node) = node(*number) else { return };
                node.set_disk_full(true);
                later(*lasts, Box::new(move || node.set_disk_full(false)));
            }
            Act::Crash { node: number, container, code } => {
                if let Some((node, task)) = self.container(*number, *container) {
                    node.engine.real.crash(task, wharf_model::Exit { code: *code, oom: *code == 137 });
                }
            }
            Act::Lose { node: number, container } => {
                if let Some((node, task)) = self.container(*number, *container) {
                    people.spawn("somebody with an engine", async move {
                        use wharf_agent::runtime::Runtime as _;
                        let all = node.engine.real.list().await.unwrap_or_default();
                        if let Some(container) = all.iter().find(|container| container.task == task) {
                            let _gone = node.engine.real.remove(&container.id).await;
                        }
                    });
                }
            }
            Act::Sicken { node: number, container } => {
                if let Some((node, task)) = self.container(*number, *container) {
                    node.engine.real.set_health(task, wharf_model::Health::Unhealthy, "made up");
                }
            }
            Act::NodeClock { node: number, by } => {
                if let Some(node) = node(*number) {
                    node.wrong.step(*by);
                }
            }
            Act::ServerClock { server: number, by } => {
                if let Some(server) = server(*number) {
                    server.wrong.step(*by);
                }
            }
            Act::StoreSlow { server: number, millis, lasts } => {
                let Some(server) = server(*number) else { return };
                server.condition.set_slow(*millis);
                later(*lasts, Box::new(move || server.condition.set_slow(0)));
            }
            Act::StoreFlaky { server: number, permille, lasts } => {
                let Some(server) = server(*number) else { return };
                server.condition.set_flaky(*permille);
                later(*lasts, Box::new(move || server.condition.set_flaky(0)));
            }
            Act::StoreAway { server: number, lasts } => {
                let Some(server) = server(*number) else { return };
                server.condition.set_away(true);
                later(*lasts, Box::new(move || server.condition.set_away(false)));
            }
            Act::StoreFull { lasts } => {
                let servers = self.servers.clone();
                servers.iter().for_each(|server| server.condition.set_full(true));
                later(
                    *lasts,
                    Box::new(move || servers.iter().for_each(|server| server.condition.set_full(false))),
                );
            }
            Act::Compact => self.shelf.compact(self.shelf.revision()),
            Act::Rest
            | Act::Up { .. }
            | Act::Scale { .. }
            | Act::Restart { .. }
            | Act::Stop { .. }
            | Act::Start { .. }
            | Act::Rollback { .. }
            | Act::Down { .. }
            | Act::Promote { .. }
            | Act::Availability { .. }
            | Act::Remove { .. } => {}
        }
    }

    /// Cuts lines for a while.
    fn cut(&self, lines: Vec<(End, End)>, lasts: u64, later: &dyn Fn(u64, Box<dyn FnOnce() + Send>)) {
        lines.iter().for_each(|(from, to)| self.net.cut(*from, *to));
        let net = Arc::clone(&self.net);
        later(lasts, Box::new(move || lines.iter().for_each(|(from, to)| net.mend(*from, *to))));
    }

    /// A container that runs on a node.
    fn container(&self, node: usize, number: usize) -> Option<(Arc<SimNode>, wharf_model::TaskId)> {
        let node = self.nodes.get(node)?;
        let running = node.engine.real.running(|task| task.id);
        let task = running.get(number % running.len().max(1))?;
        Some((Arc::clone(node), *task))
    }

    /// What a person asks for, of a server that runs.
    async fn operate(self: Arc<Self>, act: &Act, throw: u64) {
        let kind = act.kind();
        match act {
            Act::Up { app, services } => {
                let action = json!({ "action": "up", "spec": spec(*app, services) });
                self.change(&kind, *app, action, throw).await;
            }
            Act::Scale { app, service, replicas } => {
                let action =
                    json!({ "action": "scale", "replicas": { NAMES[service % NAMES.len()]: replicas } });
                self.change(&kind, *app, action, throw).await;
            }
            Act::Restart { app } => {
                self.change(&kind, *app, json!({ "action": "restart", "services": [] }), throw).await;
            }
            Act::Stop { app } => {
                self.change(&kind, *app, json!({ "action": "stop", "services": [] }), throw).await;
            }
            Act::Start { app } => {
                self.change(&kind, *app, json!({ "action": "start", "services": [] }), throw).await;
            }
            Act::Rollback { app } => self.change(&kind, *app, json!({ "action": "rollback" }), throw).await,
            Act::Down { app, volumes } => {
                self.checker.may_go(&key(*app));
                self.change(&kind, *app, json!({ "action": "down", "volumes": volumes }), throw).await;
                self.checker.may_go(&key(*app));
            }
            Act::Promote { app } => {
                let path = format!("/v1/apps/prod/app{app}/rollout/promote");
                let generation = self.checker.world(|world| Some(world.app(&key(*app))?.generation.0));
                let body =
                    json!({ "generation": generation.unwrap_or(1), "client": "ada@sim", "whole": true });
                let answer = self.ask(throw, Method::POST, &path, Some(body)).await;
                self.answered(&kind, &answer);
            }
            Act::Availability { node, to } => {
                let Some(machine) = self.nodes.get(*node) else { return };
                let path = format!("/v1/nodes/{}", machine.name());
                let body =
                    json!({ "availability": to, "labels": {}, "remove_labels": [], "rotate_key": false });
                let answer = self.ask(throw, Method::PATCH, &path, Some(body)).await;
                if let (Answer::Done(node), Some(id)) = (&answer, machine.node()) {
                    let known = node.get("id").and_then(Value::as_str) == Some(&id.to_string());
                    let generation = node.get("generation").and_then(Value::as_u64);
                    if let Some(generation) = generation.filter(|_| known && !self.is_gone(id)) {
                        self.checker.acknowledge_node(id, generation);
                    }
                }
                self.answered(&kind, &answer);
            }
            Act::Remove { node, rejoin } => {
                let Some(machine) = self.nodes.get(*node) else { return };
                let Some(id) = machine.node() else { return };
                self.checker.disown(id);
                let path = format!("/v1/nodes/{}?force=true", machine.name());
                let answer = self.ask(throw, Method::DELETE, &path, None).await;
                self.answered(&kind, &answer);
                tokio::time::sleep(Duration::from_millis(*rejoin)).await;
                if machine.node() == Some(id) && self.is_gone(id) {
                    machine.leave();
                    self.join(machine);
                    machine.start(&self.dial);
                }
            }
            _ => {}
        }
    }

    async fn ask(&self, throw: u64, method: Method, path: &str, body: Option<Value>) -> Answer {
        let first = usize::try_from(throw).unwrap_or_default() % self.servers.len();
        let in_turn = self.servers.iter().cycle().skip(first).take(self.servers.len());
        let Some(server) = in_turn.into_iter().find(|server| server.runs()) else { return Answer::Unknown };
        server.ask(method, path, body).await
    }

    /// Plans a change of an app and carries the plan out, as the command line does.
    async fn change(&self, kind: &str, app: usize, action: Value, throw: u64) {
        let key = key(app);
        let path = format!("/v1/apps/prod/app{app}");
        let down = kind == "down";
        let since = self.checker.departures(&key);
        let plan =
            self.ask(throw, Method::POST, &format!("{path}/plan"), Some(json!({ "action": action }))).await;
        let Answer::Done(plan) = plan else { return self.answered(&format!("{kind} planned:"), &plan) };
        if plan.get("refusals").and_then(Value::as_array).is_some_and(|refusals| !refusals.is_empty()) {
            let why = plan.pointer("/refusals/0/code").and_then(Value::as_str).unwrap_or("plan");
            let refused = Answer::Refused(why.to_owned(), String::new());
            return self.answered(kind, &refused);
        }
        if down {
            self.checker.may_go(&key);
        }
        let request = json!({
            "action": action,
            "fingerprint": plan.get("fingerprint"),
            "client": "ada@sim",
            "supersede": throw.is_multiple_of(2),
        });
        let answer = self.ask(throw, Method::POST, &format!("{path}/apply"), Some(request)).await;
        if let Answer::Done(applied) = &answer
            && let Some(generation) = applied.get("generation").and_then(Value::as_u64)
            && !down
            && self.checker.departures(&key) == since
        {
            self.checker.acknowledge(&key, generation);
        }
        self.answered(kind, &answer);
    }
}

/// Returns when a process is over, of itself or after a while in which it made too few calls.
async fn over(life: &Life) {
    tokio::select! {
        () = life.over() => {}
        () = tokio::time::sleep(Duration::from_secs(5)) => life.end(),
    }
}

/// The names of services.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn key(app: usize) -> AppKey {
    AppKey {
        environment: "prod".parse().expect("this is a name"),
        name: format!("app{app}").parse().expect("this is a name"),
    }
}

/// The normalised Compose file of an app.
fn spec(app: usize, drafts: &[Draft]) -> Value {
    let mut services = serde_json::Map::new();
    let mut volumes = serde_json::Map::new();
    for (number, (draft, name)) in drafts.iter().zip(NAMES).enumerate() {
        let mode = if draft.global {
            json!({ "kind": "global" })
        } else {
            json!({ "kind": "replicated", "replicas": draft.replicas })
        };
        let mut container = json!({ "stop_grace_period": 3_000 });
        if draft.volume {
            let volume = format!("{name}-data");
            container["mounts"] =
                json!([{ "source": { "type": "volume", "volume": volume }, "target": "/data" }]);
            volumes.insert(volume, if draft.shared { json!({ "driver": "shared" }) } else { json!({}) });
        }
        let mut ports = Vec::new();
        if draft.host_port {
            ports.push(json!({ "target": 80, "published": 7_000 + app * 10 + number, "mode": "host" }));
        }
        if draft.public {
            ports.push(json!({ "target": 81, "published": 8_000 + app * 10 + number }));
        }
        // A port without a check would be knocked at, and there is nothing behind it.
        let check = match draft.does {
            Does::Sick => Some("exit 1"),
            Does::ServeChecked => Some("exit 0"),
            Does::Serve | Does::Crash | Does::Job | Does::Deaf => (!ports.is_empty()).then_some("exit 0"),
        };
        let mut update = json!({
            "parallelism": draft.parallelism,
            "failure_action": if draft.pause { "pause" } else { "rollback" },
        });
        if draft.stop_first {
            update["order"] = json!("stop-first");
        }
        let mut service = json!({
            "image": format!("{}:{}", draft.does.word(), draft.version),
            "mode": mode,
            "container": container,
            "networks": { "default": {} },
            "ports": ports,
            "update": update,
            "resources": { "reservations": { "cpus": draft.cpus, "memory": draft.memory << 20 } },
        });
        if let Some(check) = check {
            let test = json!(["CMD-SHELL", check]);
            service["healthcheck"] =
                json!({ "test": test, "interval": 2_000, "timeout": 1_000, "retries": 2 });
        }
        if draft.does == Does::Job {
            service["restart"] =
                json!({ "condition": if draft.version == 1 { "none" } else { "on-failure" } });
        }
        if draft.depends && number > 0 {
            let on = NAMES[number - 1];
            service["depends_on"] = json!({ on: { "condition": "service_started", "required": true } });
        }
        if draft.blue_green {
            let release = json!({ "strategy": "blue-green", "promote": "auto", "keep": 60_000 });
            service["policy"]["release"] = release;
        }
        if draft.single_writer {
            service["policy"]["single_writer"] = json!(true);
        }
        services.insert(name.to_owned(), service);
    }
    json!({ "name": format!("app{app}"), "services": services, "networks": { "default": {} }, "volumes": volumes })
}
