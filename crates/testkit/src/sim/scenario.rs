//! What happens to a simulated cluster: people's operations and the world's faults, one after the other, as text and as chance makes it.
//!
//! A scenario says all that is decided from outside; with its seed everything else follows. Its text is one line of JSON for the cluster and
//! one for each act, so that a line can be taken out by hand.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::chance::Dice;

/// A cluster and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// How many servers.
    pub servers: usize,
    /// How many nodes.
    pub nodes: usize,
    /// What happens, in this order.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

/// Something that happens, so many milliseconds after what comes before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The pause before it.
    pub after: u64,
    /// What happens.
    #[serde(flatten)]
    pub act: Act,
}

/// What can happen. Machines and apps are numbered from 0; times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "act")]
pub enum Act {
    /// Somebody deploys an app.
    Up {
        /// Which.
        app: usize,
        /// Its services.
        services: Vec<Draft>,
    },
    /// Somebody scales a service of an app.
    Scale {
        /// Which app.
        app: usize,
        /// Which of its services.
        service: usize,
        /// To so many tasks.
        replicas: u32,
    },
    /// Somebody restarts an app.
    Restart {
        /// Which.
        app: usize,
    },
    /// Somebody stops an app.
    Stop {
        /// Which.
        app: usize,
    },
    /// Somebody starts a stopped app.
    Start {
        /// Which.
        app: usize,
    },
    /// Somebody returns to the release before.
    Rollback {
        /// Which.
        app: usize,
    },
    /// Somebody takes an app down.
    Down {
        /// Which.
        app: usize,
        /// With its volumes.
        volumes: bool,
    },
    /// Somebody promotes what waits for that.
    Promote {
        /// Which app.
        app: usize,
    },
    /// Somebody changes whether a node takes work: `active`, `pause` or `drain`.
    Availability {
        /// Which.
        node: usize,
        /// To what.
        to: String,
    },
    /// Somebody removes a node, whatever runs on it; its machine joins again as a new node after a while.
    Remove {
        /// Which.
        node: usize,
        /// Until it joins again.
        rejoin: u64,
    },
    /// Nothing gets through between a node and a server: from the node, to it, or both.
    Partition {
        /// Which node.
        node: usize,
        /// Which server; all if absent.
        server: Option<usize>,
        /// In which directions.
        way: Way,
        /// How long.
        lasts: u64,
    },
    /// Nothing gets through between two nodes.
    Apart {
        /// The one.
        node: usize,
        /// The other.
        other: usize,
        /// In which directions, as the one sees it.
        way: Way,
        /// How long.
        lasts: u64,
    },
    /// Nothing gets through between a node and anybody.
    Isolate {
        /// Which.
        node: usize,
        /// How long.
        lasts: u64,
    },
    /// The connections of a node are reset.
    Reset {
        /// Which.
        node: usize,
    },
    /// Of a thousand pieces on the network so many are lost and sent again.
    Lossy {
        /// How many.
        permille: u32,
        /// How long.
        lasts: u64,
    },
    /// Of a thousand messages between servers and agents so many are lost, before or after they were taken in, come twice, or late.
    Messages {
        /// How many.
        permille: u32,
        /// How long.
        lasts: u64,
    },
    /// An agent dies, after so many more calls to its engine, and is started again.
    KillAgent {
        /// Whose.
        node: usize,
        /// Calls.
        calls: u32,
        /// Until it is started again.
        lasts: u64,
    },
    /// A server dies, after so many more calls to its store, and is started again.
    KillServer {
        /// Which.
        server: usize,
        /// Calls.
        calls: u32,
        /// Until it is started again.
        lasts: u64,
    },
    /// A node loses power, and comes back.
    PowerOff {
        /// Which.
        node: usize,
        /// Until it comes back.
        lasts: u64,
    },
    /// An engine does not answer; its containers go on.
    EngineDown {
        /// Which.
        node: usize,
        /// How long.
        lasts: u64,
    },
    /// An engine is restarted, and its containers end.
    EngineRestart {
        /// Which.
        node: usize,
    },
    /// An engine takes its time.
    EngineSlow {
        /// Which.
        node: usize,
        /// The longest that a call takes.
        millis: u64,
        /// How long.
        lasts: u64,
    },
    /// Of a thousand calls to an engine so many fail, done or not.
    EngineFlaky {
        /// Which.
        node: usize,
        /// How many.
        permille: u32,
        /// How long.
        lasts: u64,
    },
    /// An engine lies: of a thousand answers so many are not true any more, of as many events some are told twice or never.
    EngineLies {
        /// Which.
        node: usize,
        /// How many.
        permille: u32,
        /// How long.
        lasts: u64,
    },
    /// An engine has no space left.
    EngineFull {
        /// Which.
        node: usize,
        /// How long.
        lasts: u64,
    },
    /// A node's own disk has no space left: it can keep no assignments.
    DiskFull {
        /// Which.
        node: usize,
        /// How long.
        lasts: u64,
    },
    /// A container's process ends with this code.
    Crash {
        /// On which node.
        node: usize,
        /// Which of its containers.
        container: usize,
        /// How.
        code: i64,
    },
    /// Somebody removes a container by hand.
    Lose {
        /// On which node.
        node: usize,
        /// Which of its containers.
        container: usize,
    },
    /// A container's check says that it is not well.
    Sicken {
        /// On which node.
        node: usize,
        /// Which of its containers.
        container: usize,
    },
    /// A node's clock is set.
    NodeClock {
        /// Which.
        node: usize,
        /// By so much.
        by: i64,
    },
    /// A server's clock is set.
    ServerClock {
        /// Which.
        server: usize,
        /// By so much.
        by: i64,
    },
    /// A server's store takes its time.
    StoreSlow {
        /// Whose.
        server: usize,
        /// The longest that a call takes.
        millis: u64,
        /// How long.
        lasts: u64,
    },
    /// Of a thousand calls of a server to its store so many fail, done or not.
    StoreFlaky {
        /// Whose.
        server: usize,
        /// How many.
        permille: u32,
        /// How long.
        lasts: u64,
    },
    /// A server does not reach its store.
    StoreAway {
        /// Whose.
        server: usize,
        /// How long.
        lasts: u64,
    },
    /// The store has no space left.
    StoreFull {
        /// How long.
        lasts: u64,
    },
    /// The store forgets its history.
    Compact,
    /// All faults end, and the cluster must come to rest.
    Rest,
}

/// In which directions nothing gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From the node.
    From,
    /// To the node.
    To,
    /// Both.
    Both,
}

/// A service of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    /// What its image does.
    pub does: Does,
    /// The version of its image.
    pub version: u32,
    /// How many tasks.
    pub replicas: u32,
    /// One on every node instead.
    #[serde(skip_serializing_if = "no")]
    pub global: bool,
    /// With a volume of its own.
    #[serde(skip_serializing_if = "no")]
    pub volume: bool,
    /// The volume is one that every node reaches.
    #[serde(skip_serializing_if = "no")]
    pub shared: bool,
    /// No slot of it may ever run twice.
    #[serde(skip_serializing_if = "no")]
    pub single_writer: bool,
    /// With a port of the node.
    #[serde(skip_serializing_if = "no")]
    pub host_port: bool,
    /// With a port of the gateways.
    #[serde(skip_serializing_if = "no")]
    pub public: bool,
    /// After the service before it.
    #[serde(skip_serializing_if = "no")]
    pub depends: bool,
    /// So many slots at once.
    pub parallelism: u32,
    /// The old task stops first.
    #[serde(skip_serializing_if = "no")]
    pub stop_first: bool,
    /// A whole second set, then one switch.
    #[serde(skip_serializing_if = "no")]
    pub blue_green: bool,
    /// A failing update stays where it is.
    #[serde(skip_serializing_if = "no")]
    pub pause: bool,
    /// Reserved processor time, in thousandths.
    pub cpus: u64,
    /// Reserved memory, in mebibytes.
    pub memory: u64,
}
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn no(flag: &bool) -> bool {
    !flag
}

/// What an image does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Does {
    /// Runs until it is asked to stop.
    #[default]
    Serve,
    /// The same, with a check of its own that passes.
    ServeChecked,
    /// Ends soon, and has failed.
    Crash,
    /// Runs, and its check never passes.
    Sick,
    /// Ends after a while, and is done: it is not started again.
    Job,
    /// Is deaf to the signal that asks it to stop.
    Deaf,
}
impl Does {
    /// Its word, as images are named.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::ServeChecked => "checked",
            Self::Crash => "crash",
            Self::Sick => "sick",
            Self::Job => "job",
            Self::Deaf => "deaf",
        }
    }
    /// Whether all that it takes for a task of it to be ready is that it runs.
    pub const fn is_sound(self) -> bool {
        match self {
            Self::Serve | Self::ServeChecked | Self::Deaf => true,
            Self::Crash | Self::Sick | Self::Job => false,
        }
    }
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Serve, Self::ServeChecked, Self::Crash, Self::Sick, Self::Job, Self::Deaf];
}

impl Act {
    /// Its kind, as it is counted.
    pub fn kind(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value.get("act").and_then(|kind| kind.as_str()).unwrap_or_default().to_owned()
    }
    /// Whether somebody wants something, and nothing goes wrong.
    pub const fn is_operation(&self) -> bool {
        matches!(
            self,
            Self::Up { .. }
                | Self::Scale { .. }
                | Self::Restart { .. }
                | Self::Stop { .. }
                | Self::Start { .. }
                | Self::Rollback { .. }
                | Self::Down { .. }
                | Self::Promote { .. }
                | Self::Availability { .. }
                | Self::Remove { .. }
        )
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", serde_json::to_string(self).map_err(|_| fmt::Error)?)?;
        for step in &self.steps {
            writeln!(f, "{}", serde_json::to_string(step).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}
impl FromStr for Scenario {
    type Err = serde_json::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut scenario: Self = serde_json::from_str(lines.next().unwrap_or_default())?;
        scenario.steps = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(scenario)
    }
}

/// The apps of a cluster.
const APPS: usize = 3;

impl Scenario {
    /// What chance makes of a seed: about so many hours with so many nodes.
    pub fn of_seed(seed: u64, nodes: usize, hours: f64) -> Self {
        let dice = Dice::new(seed, "scenario");
        let servers = if dice.permille(350) { 3 } else { 1 };
        let mut maker = Maker { dice, servers, nodes, steps: Vec::new(), at: 0 };
        // There is something to operate on.
        for app in 0..APPS {
            let services = (0..maker.dice.between(1, 4)).map(|_| maker.draft()).collect();
            let after = maker.dice.below(20_000);
            maker.push(after, Act::Up { app, services });
        }
        let end = std::time::Duration::from_secs_f64(hours.max(0.0) * 3600.0).as_millis();
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        while maker.at < end {
            maker.round();
        }
        Self { seed, servers, nodes, steps: maker.steps }
    }
}

struct Maker {
    dice: Dice,
    servers: usize,
    nodes: usize,
    steps: Vec<Step>,
    at: u64,
}

impl Maker {
    fn push(&mut self, after: u64, act: Act) {
        self.at += after;
        self.steps.push(Step { after, act });
    }
    /// Some minutes in which things are done and go wrong, and a rest.
    fn round(&mut self) {
        let length = self.dice.between(3, 15) * 60_000;
        // From peaceful to wild.
        let faults = self.dice.below(14);
        let operations = self.dice.between(2, 9);
        let mut moments: Vec<(u64, bool)> = (0..faults).map(|_| (self.dice.below(length), false)).collect();
        moments.extend((0..operations).map(|_| (self.dice.below(length), true)));
        moments.sort_unstable();
        let mut last = 0;
        for (moment, operation) in moments {
            let act = if operation { self.operation() } else { self.fault() };
            self.push(moment - last, act);
            last = moment;
        }
        self.push(length - last, Act::Rest);
        // Nothing happens for a while: what is left to timers has its turn.
        let idle = self.dice.between(1, 15) * 60_000;
        self.push(idle, Act::Rest);
    }
    fn node(&self) -> usize {
        usize::try_from(self.dice.below(self.nodes as u64)).unwrap_or_default()
    }
    fn server(&self) -> usize {
        usize::try_from(self.dice.below(self.servers as u64)).unwrap_or_default()
    }
    fn app(&self) -> usize {
        usize::try_from(self.dice.below(APPS as u64)).unwrap_or_default()
    }
    fn small(&self, end: u64) -> u32 {
        u32::try_from(self.dice.below(end)).unwrap_or_default()
    }
    /// From a hiccup to minutes.
    fn lasts(&self) -> u64 {
        match self.dice.below(4) {
            0 => self.dice.between(100, 3_000),
            1 => self.dice.between(3_000, 12_000),
            2 => self.dice.between(12_000, 40_000),
            _ => self.dice.between(40_000, 150_000),
        }
    }
    fn operation(&self) -> Act {
        let (app, node) = (self.app(), self.node());
        match self.dice.below(20) {
            0..=6 => {
                let services = self.dice.between(1, 4);
                Act::Up { app, services: (0..services).map(|_| self.draft()).collect() }
            }
            7..=9 => Act::Scale {
                app,
                service: usize::try_from(self.dice.below(3)).unwrap_or(0),
                replicas: self.small(6),
            },
            10 => Act::Restart { app },
            11 => Act::Stop { app },
            12 => Act::Start { app },
            13 => Act::Rollback { app },
            14 => Act::Down { app, volumes: self.dice.permille(500) },
            15 => Act::Promote { app },
            16..=18 => {
                let to = ["active", "active", "pause", "drain"];
                Act::Availability { node, to: (*self.dice.one(&to)).to_owned() }
            }
            _ => Act::Remove { node, rejoin: self.lasts() },
        }
    }
    fn draft(&self) -> Draft {
        let does = match self.dice.below(16) {
            0..=6 => Does::Serve,
            7..=11 => Does::ServeChecked,
            12 => Does::Crash,
            13 => Does::Sick,
            14 => Does::Job,
            _ => Does::Deaf,
        };
        let volume = self.dice.permille(250);
        Draft {
            does,
            version: self.small(3) + 1,
            replicas: self.small(5),
            global: does != Does::Job && self.dice.permille(120),
            volume,
            shared: volume && self.dice.permille(450),
            single_writer: self.dice.permille(200),
            host_port: self.dice.permille(120),
            public: self.dice.permille(300),
            depends: self.dice.permille(300),
            parallelism: self.small(3),
            stop_first: self.dice.permille(150),
            blue_green: !volume && self.dice.permille(150),
            pause: self.dice.permille(200),
            cpus: *self.dice.one(&[0, 100, 250, 1000]),
            memory: *self.dice.one(&[0, 64, 512, 2048]),
        }
    }
    fn fault(&self) -> Act {
        let (node, server, lasts) = (self.node(), self.server(), self.lasts());
        let container = usize::try_from(self.dice.below(8)).unwrap_or_default();
        let way = *self.dice.one(&[Way::From, Way::To, Way::Both, Way::Both]);
        match self.dice.below(30) {
            27 => Act::Apart { node, other: self.node(), way, lasts },
            28 | 29 => Act::Isolate { node, lasts },
            0 | 1 => Act::Partition { node, server: None, way, lasts },
            2 => Act::Partition { node, server: Some(server), way, lasts },
            3 => Act::Reset { node },
            4 => Act::Lossy { permille: self.small(200), lasts },
            5 | 6 => Act::Messages { permille: self.small(400), lasts },
            7 | 8 => Act::KillAgent { node, calls: self.small(12), lasts },
            9 | 10 => Act::KillServer { server, calls: self.small(20), lasts },
            11 | 12 => Act::PowerOff { node, lasts },
            13 => Act::EngineDown { node, lasts },
            14 => Act::EngineRestart { node },
            15 => Act::EngineSlow { node, millis: self.dice.between(10, 8_000), lasts },
            16 => Act::EngineFlaky { node, permille: self.small(300), lasts },
            17 => Act::EngineLies { node, permille: self.small(300), lasts },
            18 => match self.dice.below(2) {
                0 => Act::EngineFull { node, lasts },
                _ => Act::DiskFull { node, lasts },
            },
            19 => Act::Crash { node, container, code: *self.dice.one(&[0, 1, 137]) },
            20 => Act::Lose { node, container },
            21 => Act::Sicken { node, container },
            22 => {
                let by = *self.dice.one(&[-3_600_000, -5_000, 700, 60_000, 3_600_000]);
                if self.dice.permille(500) {
                    Act::NodeClock { node, by }
                } else {
                    Act::ServerClock { server, by }
                }
            }
            23 => Act::StoreSlow { server, millis: self.dice.between(10, 6_000), lasts },
            24 => Act::StoreFlaky { server, permille: self.small(300), lasts },
            25 => Act::StoreAway { server, lasts },
            _ => match self.dice.below(2) {
                0 => Act::StoreFull { lasts },
                _ => Act::Compact,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_reads_back_from_its_text_and_a_seed_always_makes_the_same() {
        let scenario = Scenario::of_seed(7, 5, 2.0);
        assert!(scenario.steps.len() > 20, "{}", scenario.steps.len());
        let lasts: u64 = scenario.steps.iter().map(|step| step.after).sum();
        assert!((7_200_000..9_000_000).contains(&lasts), "two hours and not much more: {lasts}");
        assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        assert_eq!(Scenario::of_seed(7, 5, 2.0), scenario);
        assert_ne!(Scenario::of_seed(8, 5, 2.0).steps, scenario.steps);
        let text = format!("# a note\n\n{scenario}");
        assert_eq!(text.parse::<Scenario>().unwrap(), scenario);
    }
}
