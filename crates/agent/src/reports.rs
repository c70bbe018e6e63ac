//! The latest report of the node and of each task, for every server that listens.
//!
//! - Only the latest counts: a listener that is slow skips what has been overtaken, and the hub stays as small as the node.
//! - A listener first gets everything, then changes, each thing's reports in their order.
//! - Sequences only grow, over restarts of the agent as well: they start at the time of day, with room for a thousand reports in
//!   each millisecond, so that they never run ahead of it, and go on after the highest that a kept status has, so that a clock which was
//!   set back makes no report an old one.

use std::{collections::BTreeMap, sync::Arc};

use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::watch;
pub use wharf_api::transport::node::Report;
use wharf_model::{
    Health, NodeFacts, NodeReport, PeerView, Revision, TaskId, TaskReport, TaskStatus, VolumeId,
};
use wharf_process::Clock;

/// In bits. The sum stays below 2^53, up to where JSON's numbers are exact for everyone.
const REPORTS_PER_MILLISECOND: u32 = 10;

/// Collects reports. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Reports {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
    /// The sequence of the latest change.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    sequence: u64,
    node: Option<NodeReport>,
    tasks: BTreeMap<TaskId, TaskReport>,
    removed_volumes: BTreeMap<VolumeId, u64>,
    /// What the node hears of others.
    peers: PeerView,
}

impl Reports {
    /// A hub that knows nothing yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Arc::default(), latest: watch::Sender::new(0) }
    }

    /// Notes how the node is; nothing happens if that is known. What its gateways have under way is asked here, so that of two who note it
    /// at once the later one knows it best.
    pub fn node(
        &self,
        (epoch, observed): (u64, Revision),
        facts: NodeFacts,
        problems: Vec<String>,
        draining: &dyn Fn() -> BTreeMap<TaskId, u64>,
    ) {
        let mut state = self.state.lock();
        let peers = state.peers.clone();
        let report =
            NodeReport { sequence: 0, epoch, observed, facts, problems, draining: draining(), peers };
        self.set_node(&mut state, report);
    }

    /// Notes what the node's gateways have under way with tasks that left; nothing happens if that is known, or nothing of the node is.
    pub fn draining(&self, draining: &dyn Fn() -> BTreeMap<TaskId, u64>) {
        let mut state = self.state.lock();
        let Some(report) = state.node.clone() else { return };
        self.set_node(&mut state, NodeReport { draining: draining(), ..report });
    }

    /// Notes what the node hears of those it watches; nothing is said of it before something is known of the node itself.
    pub fn peers(&self, peers: &PeerView) {
        let mut state = self.state.lock();
        state.peers.clone_from(peers);
        let Some(report) = state.node.clone() else { return };
        self.set_node(&mut state, NodeReport { peers: peers.clone(), ..report });
    }

    fn set_node(&self, state: &mut State, report: NodeReport) {
        let before = state.node.as_ref().map_or(0, |known| known.sequence);
        let report = NodeReport { sequence: before, ..report };
        if state.node.as_ref() != Some(&report) {
            let sequence = self.next(state);
            state.node = Some(NodeReport { sequence, ..report });
            self.latest.send_replace(sequence);
        }
    }

    /// Notes how a task is, and gives the report its sequence; nothing happens if that is known.
    pub fn task(&self, task: TaskId, status: &TaskStatus) -> TaskStatus {
        let mut state = self.state.lock();
        if let Some(known) = state.tasks.get(&task) {
            let same = TaskStatus { sequence: known.status.sequence, ..status.clone() };
            if same == known.status {
                return same;
            }
        }
        // What the agent before said of the task is older, also if the machine's clock was set back since.
        state.sequence = state.sequence.max(status.sequence);
        let sequence = self.next(&mut state);
        let status = TaskStatus { sequence, ..status.clone() };
        state.tasks.insert(task, TaskReport { task, status: status.clone() });
        self.latest.send_replace(sequence);
        status
    }

    /// Notes that a task which was said to run is not ready, and why; nothing happens if it was said to have come further, or not so far.
    pub fn not_ready(&self, task: TaskId, message: &str) {
        let mut state = self.state.lock();
        let Some(known) = state.tasks.get(&task).filter(|known| known.status.is_ready()) else { return };
        let status = not_ready(known.status.clone(), message);
        let sequence = self.next(&mut state);
        state.tasks.insert(task, TaskReport { task, status: TaskStatus { sequence, ..status } });
        self.latest.send_replace(sequence);
    }

    /// Says nothing more about a task.
    pub fn forget(&self, task: TaskId) {
        self.state.lock().tasks.remove(&task);
    }

    /// The data of these volumes is gone, and nothing is said any more of others.
    pub fn removed_volumes(&self, volumes: &[VolumeId]) {
        let mut state = self.state.lock();
        state.removed_volumes.retain(|volume, _| volumes.contains(volume));
        for volume in volumes {
            if !state.removed_volumes.contains_key(volume) {
                let sequence = self.next(&mut state);
                state.removed_volumes.insert(*volume, sequence);
                self.latest.send_replace(sequence);
            }
        }
    }

    /// Whether anybody listens: a server, as far as the connection to it is known to stand.
    pub fn is_heard(&self) -> bool {
        self.latest.receiver_count() > 0
    }

    /// The node's latest report.
    pub fn latest_node(&self) -> Option<NodeReport> {
        self.state.lock().node.clone()
    }

    /// What was last said of a task.
    pub fn of(&self, task: TaskId) -> Option<TaskStatus> {
        self.state.lock().tasks.get(&task).map(|report| report.status.clone())
    }

    /// Everything that is known, [`Report::Synced`], then every change. Ends with the hub.
    pub fn subscribe(&self) -> impl Stream<Item = Report> + Send + 'static {
        let (state, latest) = (Arc::clone(&self.state), self.latest.subscribe());
        let batches =
            stream::unfold((state, latest, 0, true), |(state, mut latest, seen, first)| async move {
                if !first {
                    latest.changed().await.ok()?;
                }
                latest.mark_unchanged();
                let (mut batch, newest) = {
                    let state = state.lock();
                    (state.since(seen), state.sequence)
                };
                if first {
                    batch.push(Report::Synced);
                }
                Some((stream::iter(batch), (state, latest, newest, false)))
            });
        batches.flatten()
    }

    fn next(&self, state: &mut State) -> u64 {
        state.sequence = (state.sequence + 1).max(self.clock.now().0 << REPORTS_PER_MILLISECOND);
        state.sequence
    }
}

/// The status of a task that was ready, and is not for that reason. What it is when more is known is said then.
pub(crate) fn not_ready(status: TaskStatus, message: &str) -> TaskStatus {
    if status.is_ready() {
        TaskStatus { health: Health::Starting, message: message.to_owned(), ..status }
    } else {
        status
    }
}

impl State {
    /// What was said after that sequence, oldest first.
    fn since(&self, seen: u64) -> Vec<Report> {
        let node = self.node.iter().map(|report| (report.sequence, Report::Node(Box::new(report.clone()))));
        let of_task = |report: &TaskReport| (report.status.sequence, Report::Task(Box::new(report.clone())));
        let removed =
            self.removed_volumes.iter().map(|(volume, sequence)| (*sequence, Report::VolumeRemoved(*volume)));
        let all = node.chain(self.tasks.values().map(of_task)).chain(removed);
        let mut all: Vec<_> = all.filter(|(sequence, _)| *sequence > seen).collect();
        all.sort_by_key(|(sequence, _)| *sequence);
        all.into_iter().map(|(_, report)| report).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use wharf_model::Phase;
    use wharf_process::{ManualClock, Millis};

    use super::*;

    fn task(number: u8) -> TaskId {
        TaskId::from_parts(1, [number; 10])
    }
    fn status(phase: Phase) -> TaskStatus {
        TaskStatus { phase, ..TaskStatus::default() }
    }
    fn hub(at: u64) -> Reports {
        Reports::new(Arc::new(ManualClock::at(Millis(at))))
    }
    fn now(stream: &mut (impl Stream<Item = Report> + Unpin)) -> Vec<(TaskId, Phase)> {
        let mut all = Vec::new();
        while let Some(Some(report)) = stream.next().now_or_never() {
            if let Report::Task(report) = report {
                all.push((report.task, report.status.phase));
            }
        }
        all
    }

    #[tokio::test]
    async fn a_listener_gets_everything_and_then_the_latest_of_each_change() {
        let hub = hub(5);
        hub.task(task(1), &status(Phase::Accepted));
        hub.task(task(2), &status(Phase::Accepted));
        hub.task(task(1), &status(Phase::Preparing));
        let mut stream = Box::pin(hub.subscribe());
        assert_eq!(now(&mut stream), [(task(2), Phase::Accepted), (task(1), Phase::Preparing)]);
        hub.task(task(1), &status(Phase::Starting));
        hub.task(task(1), &status(Phase::Running));
        hub.task(task(2), &status(Phase::Accepted));
        assert_eq!(
            now(&mut stream),
            [(task(1), Phase::Running)],
            "overtaken and unchanged reports are left out"
        );
    }

    #[test]
    fn what_gateways_have_under_way_is_said_when_it_changes_and_belongs_to_the_last_report() {
        let hub = hub(5);
        hub.draining(&|| BTreeMap::from([(task(1), 3)]));
        assert_eq!(hub.latest_node(), None, "nothing is known of the node");
        let machine = crate::facts::Machine::look(std::net::Ipv4Addr::LOCALHOST.into(), "1");
        let facts = || machine.facts(&Err(crate::runtime::RuntimeError::unreachable("away")), vec![]);
        hub.node((1, Revision(7)), facts(), vec![], &|| BTreeMap::from([(task(1), 2)]));
        let first = hub.latest_node().unwrap();
        assert_eq!(first.draining, BTreeMap::from([(task(1), 2)]));
        hub.node((1, Revision(7)), facts(), vec![], &|| BTreeMap::from([(task(1), 2)]));
        assert_eq!(hub.latest_node().unwrap().sequence, first.sequence, "that is known");
        hub.draining(&BTreeMap::new);
        let last = hub.latest_node().unwrap();
        assert_eq!((last.draining.len(), last.observed), (0, Revision(7)));
        assert!(last.sequence > first.sequence);
    }

    #[test]
    fn sequences_go_on_after_a_restart_with_a_clock_that_was_set_back() {
        let kept = hub(3_600_000).task(task(1), &status(Phase::Running));
        let restarted = hub(5);
        let failed = restarted.task(task(1), &TaskStatus { phase: Phase::Failed, ..kept.clone() });
        assert!(failed.sequence > kept.sequence, "the server takes it for the newer");
        let other = restarted.task(task(2), &status(Phase::Accepted));
        assert!(other.sequence > failed.sequence);
    }

    #[test]
    fn setting_the_clock_changes_no_order_of_reports() {
        let clock = ManualClock::at(Millis(3_600_000));
        let hub = Reports::new(Arc::new(clock.clone()));
        let mut last = 0;
        for wall in [3_600_000, 7_200_000, 5, 3_600_000] {
            clock.set_wall(Millis(wall));
            for phase in [Phase::Accepted, Phase::Running] {
                let sequence = hub.task(task(1), &status(phase)).sequence;
                assert!(sequence > last, "at {wall}");
                last = sequence;
            }
        }
    }

    #[test]
    fn sequences_go_on_after_a_restart_even_if_the_clock_stands() {
        let before = hub(1_000);
        let first = before.task(task(1), &status(Phase::Accepted));
        let second = before.task(task(1), &status(Phase::Running));
        assert!(second.sequence > first.sequence);
        let phases = [Phase::Accepted, Phase::Running];
        let last = (0..1_000).map(|n| before.task(task(1), &status(phases[n % 2])).sequence).max().unwrap();
        let after = hub(1_001).task(task(1), &status(Phase::Running));
        assert!(after.sequence > last, "however many reports there were before");
    }
}
