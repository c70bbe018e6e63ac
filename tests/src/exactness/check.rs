//! Compares what was answered with what was true.
//!
//! - Pure: times, lives of tasks and answers go in, figures come out.
//! - An address in an answer is right, or stale (a task that the name meant had it and has ended), or wrong: another
//!   service's, or nobody's. Staleness counts from the task's end to the moment in which the answer was there.
//! - Where a fault makes it impossible to know of an end, as on a node that is cut off, staleness counts from the end of the fault;
//!   what was answered until then is told apart and not left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::Duration,
};

/// A moment, since the beginning of the run, by the machine's one monotonic clock.
pub type Moment = Duration;

/// What happened so shortly before a fault may not have reached everybody when it began: as long as the product has for telling.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// How long after an answer the task may begin whose address it had: the process is seen a little later than the agent sees it.
const EARLY: Duration = Duration::from_millis(500);

/// One task's process, as the kernel saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// What the task is called.
    pub name: String,
    /// Of which service it is.
    pub service: String,
    /// On which node.
    pub node: u8,
    /// Where it answers.
    pub address: Ipv4Addr,
    /// When there first was a process.
    pub born: Moment,
    /// When the process was the task's own program: without a check a task is ready from then on.
    pub ready: Moment,
    /// When the process was gone.
    pub end: Option<End>,
}

/// The end of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// When.
    pub at: Moment,
    /// Its node lost its power.
    pub with_its_node: bool,
}

impl Life {
    fn is_over_before(&self, moment: Moment) -> bool {
        self.end.is_some_and(|end| end.at < moment)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// A name of a service.
    Service {
        /// As asked.
        name: String,
        /// What it means.
        service: String,
    },
    /// A name of a task.
    Task {
        /// As asked.
        name: String,
        /// What it means.
        task: String,
    },
    /// What an address is called.
    Address(Ipv4Addr),
}

impl Question {
    fn means(&self, life: &Life) -> bool {
        match self {
            Self::Service { service, .. } => *service == life.service,
            Self::Task { task, .. } => *task == life.name,
            Self::Address(address) => *address == life.address,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, .. } | Self::Task { name, .. } => f.write_str(name),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// These addresses.
    Addresses(Vec<Ipv4Addr>),
    /// This name.
    Name(String),
    /// That there is nothing of that name, or nothing of that kind.
    Nothing,
    /// That it cannot be said.
    Failure,
    /// Nothing came.
    Silence,
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The node on which it was asked.
    pub node: u8,
    /// When.
    pub asked: Moment,
    /// When the answer was there, or nobody waited any longer.
    pub answered: Moment,
    /// What was asked.
    pub question: Question,
    /// What came back.
    pub said: Said,
}

/// A time in which some nodes cannot know what happens on others.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What it is.
    pub what: String,
    /// From when.
    pub from: Moment,
    /// Until everything needed was there again.
    pub until: Moment,
    /// Who cannot know; all if absent.
    pub on: Option<BTreeSet<u8>>,
    /// Of tasks on which nodes; of those on any other than its own if absent.
    pub of: Option<BTreeSet<u8>>,
    /// They hear of ends: only what is new cannot be known.
    pub ends_are_heard: bool,
}

impl Fault {
    fn hides(&self, observer: u8, home: u8, what: Happened) -> bool {
        let concerned = self.on.as_ref().is_none_or(|on| on.contains(&observer));
        let hidden = what == Happened::Begun || !self.ends_are_heard;
        concerned && hidden && self.of.as_ref().map_or(home != observer, |of| of.contains(&home))
    }
}

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happened {
    Begun,
    Ended,
}

/// A part of a run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What happens in it.
    pub name: String,
    /// From when.
    pub from: Moment,
    /// Until when.
    pub until: Moment,
}

/// Everything that was seen in a run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The parts, in their order.
    pub scenarios: Vec<Scenario>,
    /// What was broken when.
    pub faults: Vec<Fault>,
    /// The truth.
    pub lives: Vec<Life>,
    /// The answers.
    pub heard: Vec<Heard>,
    /// When the run ended.
    pub end: Moment,
}

/// The figures of one scenario.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Questions that were asked.
    pub questions: usize,
    /// Tasks that became ready, and ended.
    pub begun: usize,
    /// Tasks that ended.
    pub ended: usize,
    /// For each end on a live node and each observer: how long the address was still answered.
    pub stale: Vec<Duration>,
    /// The same for tasks that ended with their node's power.
    pub stale_after_power_off: Vec<Duration>,
    /// The same while a fault made it impossible to know.
    pub stale_in_fault: Vec<Duration>,
    /// For each task and observer: how long after it was ready its address was first answered.
    pub appeared: Vec<Duration>,
    /// The same while a fault made it impossible to know.
    pub appeared_in_fault: Vec<Duration>,
    /// How long the address of a task that was answered before and after was not answered.
    pub gaps: Vec<Duration>,
    /// How long before its end a task's address was answered last: it was asked to stop.
    pub withdrawn: Vec<Duration>,
    /// Answers with nothing although a task was ready and had been answered.
    pub empty: usize,
    /// Addresses of another service.
    pub wrong: usize,
    /// Addresses that nobody ever had.
    pub unknown: usize,
    /// Questions without an answer.
    pub silent: usize,
    /// Answers that said that nothing can be said.
    pub failed: usize,
    /// For each stretch of questions without an answer, by observer: how long it lasted.
    pub silences: Vec<Duration>,
    /// Names of addresses whose task had ended and that no other task had.
    pub stale_names: Vec<Duration>,
    /// The worst things that should not be, in words, the worst first.
    pub examples: Vec<(Duration, String)>,
}

/// How many examples are kept.
const EXAMPLES: usize = 8;

impl Figures {
    fn example(&mut self, weight: Duration, text: impl FnOnce() -> String) {
        let place = self.examples.partition_point(|(other, _)| *other >= weight);
        if place < EXAMPLES {
            self.examples.insert(place, (weight, text()));
            self.examples.truncate(EXAMPLES);
        }
    }
}

/// The longest of some times.
pub fn longest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

/// The median of some times.
pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The figures of each scenario.
pub fn judge(run: &Run) -> Vec<Figures> {
    let mut judge = Judge::new(run);
    judge.answers();
    judge.addresses();
    judge.silences();
    judge.figures
}

struct Judge<'a> {
    run: &'a Run,
    figures: Vec<Figures>,
    /// By address, in the order of birth.
    by_address: BTreeMap<Ipv4Addr, Vec<usize>>,
    /// When each observer was last told each life's address, and when it first was.
    told: BTreeMap<(u8, usize), (Moment, Moment)>,
    /// Moments in which each observer was answered about a service, by observer and service.
    answers: BTreeMap<(u8, &'a str), Vec<&'a Heard>>,
}

/// What an address in an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right(usize),
    Stale(usize),
    Wrong,
    Unknown,
}

impl<'a> Judge<'a> {
    fn new(run: &'a Run) -> Self {
        let mut by_address = BTreeMap::<_, Vec<usize>>::new();
        for (index, life) in run.lives.iter().enumerate() {
            by_address.entry(life.address).or_default().push(index);
        }
        by_address.values_mut().for_each(|lives| lives.sort_by_key(|index| run.lives[*index].born));
        let mut answers = BTreeMap::<_, Vec<_>>::new();
        for heard in &run.heard {
            if let Question::Service { service, .. } = &heard.question
                && !matches!(heard.said, Said::Silence | Said::Failure)
            {
                answers.entry((heard.node, service.as_str())).or_default().push(heard);
            }
        }
        answers.values_mut().for_each(|heard| heard.sort_by_key(|heard| heard.answered));
        let figures = vec![Figures::default(); run.scenarios.len()];
        Self { run, figures, by_address, told: BTreeMap::new(), answers }
    }

    /// The scenario of a moment, and the last one after all.
    fn figures(&mut self, at: Moment) -> &mut Figures {
        let place = self.run.scenarios.iter().position(|scenario| at < scenario.until);
        let last = self.figures.len() - 1;
        &mut self.figures[place.unwrap_or(last)]
    }

    /// What `address` is in an answer to `heard`.
    fn verdict(&self, heard: &Heard, address: Ipv4Addr) -> Verdict {
        let lives = &self.run.lives;
        let had = self.by_address.get(&address).map(Vec::as_slice).unwrap_or_default();
        let begun = |index: &&usize| lives[**index].born <= heard.answered + EARLY;
        let meant = |index: &&usize| heard.question.means(&lives[**index]);
        let alive = |index: &&usize| !lives[**index].is_over_before(heard.asked);
        if let Some(index) = had.iter().filter(begun).filter(meant).find(alive) {
            return Verdict::Right(*index);
        }
        // Given to somebody else: whoever goes there meets another service.
        let there = |index: &&usize| lives[**index].born <= heard.answered && alive(index);
        let taken = had.iter().filter(|index| !meant(index)).any(|index| there(&index));
        match had.iter().filter(begun).rfind(meant) {
            Some(index) if !taken => Verdict::Stale(*index),
            Some(_) => Verdict::Wrong,
            None if had.iter().any(|index| begun(&index)) => Verdict::Wrong,
            None => Verdict::Unknown,
        }
    }

    fn answers(&mut self) {
        for heard in &self.run.heard {
            let at = heard.answered;
            self.figures(at).questions += 1;
            match &heard.said {
                Said::Addresses(addresses) => {
                    for address in addresses {
                        self.address(heard, *address);
                    }
                }
                Said::Name(name) => self.name(heard, name),
                Said::Nothing => {}
                Said::Failure => {
                    self.figures(at).failed += 1;
                    self.figures(at)
                        .example(Duration::ZERO, || format!("n{}: {} failed", heard.node, heard.question));
                }
                Said::Silence => self.figures(at).silent += 1,
            }
        }
    }

    fn address(&mut self, heard: &Heard, address: Ipv4Addr) {
        let at = heard.answered;
        match self.verdict(heard, address) {
            Verdict::Right(life) | Verdict::Stale(life) => {
                if matches!(heard.question, Question::Service { .. })
                    || self.verdict(heard, address) == Verdict::Stale(life)
                {
                    let told = self.told.entry((heard.node, life)).or_insert((at, at));
                    *told = (told.0.min(at), told.1.max(at));
                }
            }
            Verdict::Wrong => {
                let figures = self.figures(at);
                figures.wrong += 1;
                figures.example(Duration::MAX, || {
                    format!(
                        "n{}: {} led to {address}, which is another's, at {at:.1?}",
                        heard.node, heard.question
                    )
                });
            }
            Verdict::Unknown => {
                let figures = self.figures(at);
                figures.unknown += 1;
                figures.example(Duration::MAX, || {
                    format!(
                        "n{}: {} led to {address}, which nobody has, at {at:.1?}",
                        heard.node, heard.question
                    )
                });
            }
        }
    }

    /// The name of an address is that of an unfinished task, which may not run yet.
    fn name(&mut self, heard: &Heard, name: &str) {
        let at = heard.answered;
        let Question::Address(address) = heard.question else { return };
        let lives = &self.run.lives;
        let had = self.by_address.get(&address).map(Vec::as_slice).unwrap_or_default();
        let named = || had.iter().map(|index| &lives[*index]).filter(|life| life.name == name);
        if named().any(|life| !life.is_over_before(heard.asked)) {
            return;
        }
        let ended = named().filter_map(|life| Some((life, life.end?))).max_by_key(|(_, end)| end.at);
        match ended {
            Some((life, end)) => {
                let from = self.known_from(heard.node, life.node, end.at, Happened::Ended);
                let stale = at.saturating_sub(from);
                self.figures(at).stale_names.push(stale);
            }
            None => {
                let figures = self.figures(at);
                figures.wrong += 1;
                figures.example(Duration::MAX, || {
                    format!("n{}: {address} was called {name}, at {at:.1?}", heard.node)
                });
            }
        }
    }

    /// From when on what happened at `at` on node `home` could be known on `observer`.
    fn known_from(&self, observer: u8, home: u8, at: Moment, what: Happened) -> Moment {
        let hides = |known: Moment| {
            let faults = self.run.faults.iter().filter(|fault| fault.hides(observer, home, what));
            let during =
                |fault: &&Fault| (fault.from.saturating_sub(ON_ITS_WAY)..fault.until).contains(&known);
            faults.filter(during).map(|fault| fault.until).max()
        };
        // One fault may follow on another.
        let mut known = at;
        while let Some(until) = hides(known) {
            known = until;
        }
        known
    }

    /// What became of each task's address, on each node.
    fn addresses(&mut self) {
        let observers: BTreeSet<u8> = self.run.heard.iter().map(|heard| heard.node).collect();
        for (index, life) in self.run.lives.iter().enumerate() {
            self.figures(life.ready).begun += 1;
            if let Some(end) = life.end {
                self.figures(end.at).ended += 1;
            }
            for observer in &observers {
                self.address_of(*observer, index, life);
            }
        }
        self.empties();
    }

    fn address_of(&mut self, observer: u8, index: usize, life: &Life) {
        let Some((first, last)) = self.told.get(&(observer, index)).copied() else { return };
        if let Some(end) = life.end {
            self.staleness(observer, life, end, last);
        }
        let known = self.known_from(observer, life.node, life.ready, Happened::Begun);
        let appeared = first.saturating_sub(known);
        if known > life.ready {
            self.figures(life.ready).appeared_in_fault.push(first.saturating_sub(life.ready));
        }
        self.figures(life.ready).appeared.push(appeared);
        let answers = self.answers.get(&(observer, life.service.as_str())).cloned().unwrap_or_default();
        let within = answers.iter().filter(|heard| (first..=last).contains(&heard.answered));
        let mut before = first;
        let mut missed = false;
        let mut gaps = Vec::new();
        for heard in within {
            let has = matches!(&heard.said, Said::Addresses(all) if all.contains(&life.address));
            if has && missed {
                gaps.push((before, heard.answered));
            }
            if has {
                before = heard.answered;
            }
            missed = !has;
        }
        for (from, until) in gaps {
            self.figures(until).gaps.push(until - from);
            let name = life.name.clone();
            self.figures(until).example(until - from, || {
                format!("n{observer}: {name} was missing for {:.1?}, until {until:.1?}", until - from)
            });
        }
        let lacking = answers.iter().filter(|heard| heard.answered > last);
        match (lacking.map(|heard| heard.answered).min(), life.end) {
            (Some(lacking), Some(end)) if lacking < end.at => {
                self.figures(end.at).withdrawn.push(end.at - lacking);
            }
            // It runs to this day and is not answered any more.
            (Some(lacking), None) => {
                let gap = self.run.end.saturating_sub(lacking);
                self.figures(self.run.end).gaps.push(gap);
                self.figures(self.run.end).example(Duration::MAX, || {
                    format!("n{observer}: {} has been missing since {lacking:.1?}", life.name)
                });
            }
            (Some(_) | None, _) => {}
        }
    }

    fn staleness(&mut self, observer: u8, life: &Life, end: End, last: Moment) {
        let known = self.known_from(observer, life.node, end.at, Happened::Ended);
        let stale = last.saturating_sub(known);
        if known > end.at {
            self.figures(end.at).stale_in_fault.push(last.min(known).saturating_sub(end.at));
        }
        let figures = self.figures(end.at);
        if end.with_its_node {
            figures.stale_after_power_off.push(stale);
        } else {
            figures.stale.push(stale);
            if stale > Duration::from_secs(1) {
                figures.example(stale, || {
                    format!(
                        "n{observer}: {} ({}) was stale for {stale:.1?} after {:.1?}",
                        life.name, life.address, end.at
                    )
                });
            }
        }
    }

    /// Answers with nothing while a task was answered before and after.
    fn empties(&mut self) {
        let mut empty = Vec::new();
        for ((observer, service), answers) in &self.answers {
            let lives = self.run.lives.iter().enumerate().filter(|(_, life)| life.service == *service);
            let told: Vec<_> = lives.filter_map(|(index, _)| self.told.get(&(*observer, index))).collect();
            let nothing = answers.iter().filter(|heard| heard.said == Said::Nothing);
            empty.extend(
                nothing
                    .filter(|heard| {
                        told.iter().any(|(first, last)| *first < heard.asked && heard.answered < *last)
                    })
                    .map(|heard| heard.answered),
            );
        }
        for at in empty {
            self.figures(at).empty += 1;
        }
    }

    fn silences(&mut self) {
        let mut by_observer = BTreeMap::<u8, Vec<&Heard>>::new();
        for heard in &self.run.heard {
            by_observer.entry(heard.node).or_default().push(heard);
        }
        for heard in by_observer.values_mut() {
            heard.sort_by_key(|heard| heard.asked);
            let mut since = None;
            for heard in heard.iter() {
                match (&heard.said, since) {
                    (Said::Silence, None) => since = Some(heard.asked),
                    (Said::Silence, Some(_)) | (_, None) => {}
                    (_, Some(from)) => {
                        since = None;
                        self.figures(heard.answered).silences.push(heard.answered.saturating_sub(from));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

    fn ms(ms: u64) -> Moment {
        Duration::from_millis(ms)
    }
    fn life(service: &str, address: Ipv4Addr, node: u8, from: u64, until: Option<u64>) -> Life {
        let end = until.map(|until| End { at: ms(until), with_its_node: false });
        let name = format!("shop-{service}-1");
        Life { name, service: service.into(), node, address, born: ms(from), ready: ms(from), end }
    }
    fn heard(node: u8, at: u64, said: Said) -> Heard {
        let question = Question::Service { name: "web".into(), service: "web".into() };
        Heard { node, asked: ms(at), answered: ms(at + 2), question, said }
    }
    fn to(addresses: &[Ipv4Addr]) -> Said {
        Said::Addresses(addresses.to_vec())
    }
    fn run(lives: Vec<Life>, heard: Vec<Heard>) -> Run {
        let scenario = Scenario { name: "all".into(), from: ms(0), until: ms(60_000) };
        Run { scenarios: vec![scenario], faults: Vec::new(), lives, heard, end: ms(60_000) }
    }
    fn figures(run: &Run) -> Figures {
        judge(run).remove(0)
    }

    #[test]
    fn staleness_is_the_time_from_the_end_to_the_last_answer() {
        let lives = vec![life("web", A, 1, 1_000, Some(5_000)), life("web", B, 2, 1_000, None)];
        let answers = vec![
            heard(2, 1_100, to(&[A, B])),
            heard(2, 5_300, to(&[A, B])),
            heard(2, 5_400, to(&[B])),
            heard(2, 59_998, to(&[B])),
        ];
        let figures = figures(&run(lives, answers));
        assert_eq!((figures.ended, figures.stale), (1, vec![ms(302)]));
        assert_eq!(figures.appeared, [ms(102), ms(102)]);
        assert_eq!((figures.wrong, figures.unknown, figures.empty), (0, 0, 0));
        assert!(figures.gaps.is_empty());
    }

    #[test]
    fn an_address_of_another_service_is_wrong_and_one_of_nobody_unknown() {
        let lives = vec![life("db", A, 1, 1_000, None)];
        let figures = figures(&run(lives, vec![heard(2, 2_000, to(&[A])), heard(2, 3_000, to(&[B]))]));
        assert_eq!((figures.wrong, figures.unknown, figures.stale), (1, 1, vec![]));
    }

    #[test]
    fn a_stale_address_that_was_given_to_another_service_is_wrong() {
        let lives = vec![life("web", A, 1, 1_000, Some(5_000)), life("db", A, 1, 6_000, None)];
        let figures = figures(&run(lives, vec![heard(2, 5_500, to(&[A])), heard(2, 6_500, to(&[A]))]));
        assert_eq!((figures.wrong, figures.stale), (1, vec![ms(502)]));
    }

    #[test]
    fn a_task_that_is_answered_before_and_after_was_missing_between() {
        let lives = vec![life("web", A, 1, 1_000, None)];
        let answers = vec![
            heard(2, 1_100, to(&[A])),
            heard(2, 1_200, Said::Nothing),
            heard(2, 1_300, to(&[A])),
            heard(2, 59_998, to(&[A])),
        ];
        let figures = figures(&run(lives, answers));
        assert_eq!((figures.gaps, figures.empty), (vec![ms(200)], 1));
    }

    #[test]
    fn what_is_asked_to_stop_is_withdrawn_and_not_missing() {
        let lives = vec![life("web", A, 1, 1_000, Some(5_000))];
        let answers =
            vec![heard(2, 1_100, to(&[A])), heard(2, 4_800, Said::Nothing), heard(2, 5_100, Said::Nothing)];
        let figures = figures(&run(lives, answers));
        assert_eq!((figures.gaps, figures.withdrawn, figures.empty), (vec![], vec![ms(198)], 0));
    }

    #[test]
    fn in_a_fault_staleness_counts_from_its_end_and_is_told_apart_before() {
        let lives = vec![life("web", A, 1, 1_000, Some(5_000))];
        let answers = vec![heard(3, 1_100, to(&[A])), heard(3, 9_000, to(&[A])), heard(3, 10_500, to(&[A]))];
        let mut run = run(lives, answers);
        let fault = |on: &[u8]| Fault {
            what: "cut off".into(),
            from: ms(4_000),
            until: ms(10_000),
            on: Some(on.iter().copied().collect()),
            of: None,
            ends_are_heard: false,
        };
        run.faults = vec![fault(&[3])];
        let there = figures(&run);
        assert_eq!((there.stale, there.stale_in_fault), (vec![ms(502)], vec![ms(5_000)]));
        run.faults = vec![fault(&[2])];
        assert_eq!(figures(&run).stale, [ms(5_502)], "others are not excused");
        run.faults = vec![Fault { ends_are_heard: true, ..fault(&[3]) }];
        assert_eq!(figures(&run).stale, [ms(5_502)], "what can be heard is no excuse");
        run.faults = vec![Fault { on: None, ..fault(&[]) }];
        run.heard.iter_mut().for_each(|heard| heard.node = 1);
        assert_eq!(figures(&run).stale, [ms(5_502)], "of its own tasks a node knows everything");
    }

    #[test]
    fn what_was_still_on_its_way_when_a_fault_began_counts_from_the_faults_end() {
        let answers = || vec![heard(3, 1_100, to(&[A])), heard(3, 10_500, to(&[A]))];
        let of = |end| {
            let mut run = run(vec![life("web", A, 1, 1_000, Some(end))], answers());
            let on = Some([3].into());
            run.faults = vec![Fault {
                what: String::new(),
                from: ms(5_000),
                until: ms(10_000),
                on,
                of: None,
                ends_are_heard: false,
            }];
            figures(&run).stale
        };
        assert_eq!(of(4_500), [ms(502)]);
        assert_eq!(of(3_900), [ms(6_602)], "a second before there was time enough");
    }

    #[test]
    fn a_task_that_runs_and_is_answered_no_more_is_missing_to_the_end() {
        let lives = vec![life("web", A, 1, 1_000, None)];
        let answers = vec![heard(2, 1_100, to(&[A])), heard(2, 30_000, Said::Nothing)];
        assert_eq!(figures(&run(lives, answers)).gaps, [ms(29_998)]);
    }

    #[test]
    fn names_of_addresses_are_those_of_tasks_that_are_not_over() {
        let lives = vec![life("web", A, 1, 1_000, Some(5_000))];
        let named = |at, name: &str| Heard {
            question: Question::Address(A),
            said: Said::Name(name.into()),
            ..heard(2, at, Said::Nothing)
        };
        let answers = vec![named(500, "shop-web-1"), named(5_200, "shop-web-1"), named(5_300, "shop-db-1")];
        let figures = figures(&run(lives, answers));
        assert_eq!((figures.stale_names, figures.wrong), (vec![ms(202)], 1));
    }

    #[test]
    fn silence_lasts_from_the_first_question_without_to_the_next_answer() {
        let lives = vec![life("web", A, 1, 1_000, None)];
        let answers =
            vec![heard(2, 2_000, Said::Silence), heard(2, 3_000, Said::Silence), heard(2, 4_000, to(&[A]))];
        let figures = figures(&run(lives, answers));
        assert_eq!((figures.silent, figures.silences), (2, vec![ms(2_002)]));
    }
}
