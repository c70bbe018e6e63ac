//! Who is told which of a node's tasks are alive, and what is made of what others say.
//!
//! A server tells everybody what has ended, within some hundredths of a second. Where it cannot, because it is dead or a node is cut off from
//! it, nodes tell each other:
//!
//! - A node that no server hears tells the nodes that have its tasks in their tables, at once, when something ends or begins again, and again and
//!   again. They answer with what is alive there, and say it once more with each change. So it hears what it missed, whenever that was.
//! - A node goes by the tables of a server, and leaves out what others say has ended. It believes the node whose task it is, about what it
//!   had in its own table then, for as long as that is good for and said again. Nothing is learned from others but ends: what is new has to come
//!   from a server.
//! - Between two nodes that servers hear, nothing is said. What was said before holds for as long as a server's tables may take to come.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use wharf_model::{AssignmentSet, NodeId, Peer, TaskId, is_tunnel, tunnel_address};

use super::alive::Alive;

/// Between two statements of a node that no server hears; longer where many have to be told.
const AGAIN: Duration = Duration::from_secs(1);
/// So much more for each node that has to be told: a thousand nodes without a server hear a hundred messages a second each.
const FOR_EACH: Duration = Duration::from_millis(10);
/// After a change it is said again so soon: the first may be lost.
const ONCE_MORE: Duration = Duration::from_millis(200);
/// Statements that may be lost in a row before what was said is not good any more.
const LOST: u32 = 4;
/// A server that hears a node again has its word, and has told everybody, after so long.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// Nothing that is said is good for longer.
const LONGEST: Duration = Duration::from_mins(2);

/// What a node tells others.
#[derive(Debug)]
pub(crate) struct Telling {
    number: u64,
    /// What was said last: which tasks were alive, and whether a server heard the node.
    said: Option<(BTreeSet<TaskId>, bool)>,
    /// When it is said again, if it is.
    next: Option<Duration>,
    /// Who wants to be told, until when, and how long that is to be good for.
    asking: BTreeMap<IpAddr, (Duration, Duration)>,
}

/// What is to be sent, and to whom.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The messages, of which each goes to everybody.
    pub(crate) parts: Vec<Alive>,
    /// To whom.
    pub(crate) to: BTreeSet<IpAddr>,
}

/// How a node is: what it has to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'o> {
    /// The address at which others have its tasks.
    pub(crate) at: IpAddr,
    /// Its tasks, without those that have ended.
    pub(crate) alive: &'o BTreeSet<TaskId>,
    /// Whether a server hears it.
    pub(crate) served: bool,
}

impl Telling {
    /// Numbers go on after this one.
    pub(crate) fn new(number: u64) -> Self {
        Self { number, said: None, next: None, asking: BTreeMap::new() }
    }

    /// Takes note of who says something: whom no server hears wants to be told. It is answered at once, unless everybody is told anyway.
    pub(crate) fn asked(&mut self, by: IpAddr, said: &Alive, own: Own<'_>, now: Duration) -> Option<Told> {
        if said.served {
            return None;
        }
        let holds = said.holds.min(LONGEST);
        self.asking.insert(by, (now + holds, holds));
        own.served.then(|| self.tell(own, holds, [by].into()))
    }

    /// What is to be said now, if anything. `peers` are asked for if they are to be told.
    pub(crate) fn due(
        &mut self,
        own: Own<'_>,
        peers: impl FnOnce() -> BTreeSet<IpAddr>,
        now: Duration,
    ) -> Option<Told> {
        self.asking.retain(|_, (until, _)| *until > now);
        let changed = self.said.as_ref().is_none_or(|(alive, _)| alive != own.alive);
        let was_served = self.said.as_ref().is_none_or(|(_, served)| *served);
        let again = self.next.is_some_and(|next| next <= now);
        if !(changed || again || was_served != own.served) {
            return None;
        }
        self.said = Some((own.alive.clone(), own.served));
        if own.served {
            // Those who were told while nobody heard this node hear twice that somebody does, so that they do not go by it for longer.
            let over = again || !was_served;
            self.next = (!was_served).then(|| now + ONCE_MORE);
            let asking = self.asking.keys().copied();
            let to: BTreeSet<_> = if over { asking.chain(peers()).collect() } else { asking.collect() };
            let holds = self.asking.values().map(|(_, holds)| *holds).max().unwrap_or(AGAIN);
            return (!to.is_empty()).then(|| self.tell(own, holds, to));
        }
        let to = peers();
        let every = AGAIN.max(FOR_EACH * u32::try_from(to.len()).unwrap_or(u32::MAX));
        self.next = Some(now + if again && !changed { every } else { ONCE_MORE });
        (!to.is_empty()).then(|| self.tell(own, every * LOST, to))
    }

    /// When there is something to say although nothing changes.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.next
    }

    fn tell(&mut self, own: Own<'_>, holds: Duration, to: BTreeSet<IpAddr>) -> Told {
        self.number += 1;
        Told { parts: Alive::all(self.number, own.served, holds, own.at, own.alive), to }
    }
}

/// What others have said.
#[derive(Debug, Default)]
pub(crate) struct Hearsay {
    /// The latest of each node that is believed, remembered for as long as this agent runs: an old message may come again.
    numbers: BTreeMap<NodeId, u64>,
    /// Tasks that have ended, and until when that is to be believed.
    gone: BTreeMap<TaskId, Duration>,
}

impl Hearsay {
    /// Whether anything in a message could matter here: asked before its signature is looked at, which costs more. When a server is started
    /// anew, all nodes say that everything is alive, and nobody needs to know who said so.
    pub(crate) fn matters(&self, set: &AssignmentSet, said: &Alive, served: bool) -> bool {
        let is_news = |task: TaskId| !said.tasks.contains(&task) || self.gone.contains_key(&task);
        let asks = !said.served && served;
        asks || tasks_at(set, said, None).any(is_news)
    }

    /// Takes in what a node says of its tasks. Whether that changes what is known to have ended.
    pub(crate) fn take(
        &mut self,
        set: &AssignmentSet,
        from: NodeId,
        said: &Alive,
        served: bool,
        now: Duration,
    ) -> bool {
        let latest = self.numbers.entry(from).or_default();
        if said.number < *latest {
            return false;
        }
        *latest = said.number;
        // A server that hears both knows better, of what has begun since, too: once its tables are there.
        let is_known = served && said.served;
        let mut changed = false;
        for task in tasks_at(set, said, Some(from)) {
            changed |= if said.tasks.contains(&task) {
                self.gone.remove(&task).is_some()
            } else if is_known {
                self.gone.entry(task).and_modify(|until| *until = (now + ON_ITS_WAY).min(*until));
                false
            } else {
                self.gone.insert(task, now + said.holds.min(LONGEST)).is_none()
            };
        }
        changed
    }

    /// Forgets what is not good any more, and what no table has. Whether that was anything.
    pub(crate) fn expire(&mut self, set: &AssignmentSet, now: Duration) -> bool {
        if self.gone.is_empty() {
            return false;
        }
        let before = self.gone.len();
        self.gone.retain(|_, until| *until > now);
        let there: BTreeSet<_> = peers(set).filter_map(|peer| peer.task).collect();
        self.gone.retain(|task, _| there.contains(task));
        self.gone.len() != before
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.gone.values().min().copied()
    }

    /// The tasks of others that have ended.
    pub(crate) fn gone(&self) -> BTreeSet<TaskId> {
        self.gone.keys().copied().collect()
    }
}

/// The tasks that a set has on the node that says this, of those that it is about. As long as it is not known which node that is, those of
/// all whose tasks are reached by tunnels count.
fn tasks_at<'s>(
    set: &'s AssignmentSet,
    said: &'s Alive,
    from: Option<NodeId>,
) -> impl Iterator<Item = TaskId> + 's {
    let tunnel = from.map(tunnel_address);
    let is_there = move |peer: &&Peer| match peer.node {
        node if node == said.at => true,
        IpAddr::V6(node) => tunnel.map_or_else(|| is_tunnel(node), |tunnel| node == tunnel),
        IpAddr::V4(_) => false,
    };
    peers(set).filter(is_there).filter_map(|peer| peer.task).filter(|task| said.is_about(*task))
}

/// The nodes that have tasks of this one in their tables: those that share a network with it.
pub(crate) fn neighbours(set: &AssignmentSet) -> BTreeSet<IpAddr> {
    peers(set).map(|peer| peer.node).collect()
}

fn peers(set: &AssignmentSet) -> impl Iterator<Item = &Peer> {
    set.networks.values().flat_map(|network| &network.peers)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wharf_model::{NetworkAssignment, NetworkId, Revision};

    use super::*;

    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 12));
    const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 13));
    const SECOND: Duration = Duration::from_secs(1);

    fn task(number: u8) -> TaskId {
        TaskId::from_parts(1, [number; 10])
    }
    fn node(number: u8) -> NodeId {
        NodeId::from_parts(1, [number; 10])
    }
    fn tasks(numbers: &[u8]) -> BTreeSet<TaskId> {
        numbers.iter().copied().map(task).collect()
    }
    /// A set with these tasks of other nodes.
    fn set(peers: &[(u8, IpAddr)]) -> AssignmentSet {
        let id = NetworkId::from_parts(1, [7; 10]);
        let subnet = "10.0.0.0/24".parse().unwrap();
        let mut network = NetworkAssignment::new(id, "shop_default", 1, subnet, [10, 0, 0, 1].into());
        let peer = |(number, node): &(u8, IpAddr)| Peer {
            task: Some(task(*number)),
            ..Peer::new([10, 0, 0, *number].into(), *node)
        };
        network.peers = peers.iter().map(peer).collect();
        network.peers.push(Peer::new([10, 0, 0, 200].into(), OTHER));
        let mut set = AssignmentSet::new(1, Revision(7), node(1));
        set.networks.insert(id, network);
        set
    }
    fn says(number: u64, served: bool, alive: &[u8]) -> Alive {
        Alive::all(number, served, 4 * SECOND, OTHER, &tasks(alive)).remove(0)
    }

    #[test]
    fn what_a_node_says_of_its_own_tasks_is_believed_while_it_is_said() {
        let set = set(&[(1, OTHER), (2, OTHER), (3, THIRD)]);
        let mut hearsay = Hearsay::default();
        assert!(hearsay.take(&set, node(2), &says(5, false, &[1]), true, SECOND));
        assert_eq!(hearsay.gone(), tasks(&[2]), "nothing follows for another node's");
        assert!(!hearsay.take(&set, node(2), &says(6, false, &[1]), true, 2 * SECOND), "that is no news");
        assert!(!hearsay.expire(&set, 5 * SECOND), "it was said again");
        assert_eq!(hearsay.next(), Some(6 * SECOND));
        assert!(hearsay.expire(&set, 6 * SECOND));
        assert_eq!(hearsay.gone(), tasks(&[]));
    }

    #[test]
    fn a_task_that_begins_again_is_there_again_and_old_messages_change_nothing() {
        let set = set(&[(1, OTHER), (2, OTHER)]);
        let mut hearsay = Hearsay::default();
        assert!(hearsay.take(&set, node(2), &says(5, false, &[1]), false, SECOND));
        assert!(hearsay.take(&set, node(2), &says(6, false, &[1, 2]), false, SECOND));
        assert_eq!(hearsay.gone(), tasks(&[]));
        assert!(!hearsay.take(&set, node(2), &says(5, false, &[1]), false, SECOND));
        assert_eq!(hearsay.gone(), tasks(&[]));
    }

    #[test]
    fn once_a_server_hears_both_its_tables_count() {
        let set = set(&[(1, OTHER), (2, OTHER)]);
        let mut hearsay = Hearsay::default();
        hearsay.take(&set, node(2), &says(5, false, &[1]), true, SECOND);
        assert!(!hearsay.take(&set, node(2), &says(6, true, &[1]), true, SECOND));
        assert_eq!(hearsay.gone(), tasks(&[2]), "they are on their way");
        assert_eq!(hearsay.next(), Some(3 * SECOND));
        assert!(hearsay.expire(&set, 3 * SECOND), "what is in the table may have begun since");
        assert!(!hearsay.take(&set, node(2), &says(6, true, &[1]), true, 3 * SECOND));
        assert_eq!(hearsay.gone(), tasks(&[]));
        assert!(
            hearsay.take(&set, node(2), &says(7, true, &[1]), false, SECOND),
            "this node has an old table"
        );
        assert_eq!(hearsay.gone(), tasks(&[2]));
    }

    #[test]
    fn what_no_table_has_any_more_is_forgotten() {
        let mut hearsay = Hearsay::default();
        hearsay.take(&set(&[(1, OTHER), (2, OTHER)]), node(2), &says(5, false, &[]), true, SECOND);
        assert!(hearsay.expire(&set(&[(2, OTHER)]), SECOND));
        assert_eq!(hearsay.gone(), tasks(&[2]));
    }

    #[test]
    fn tasks_behind_tunnels_are_their_nodes_and_nobody_elses() {
        let behind = |number| (number, IpAddr::V6(tunnel_address(node(number))));
        let set = set(&[behind(1), behind(2)]);
        let mut hearsay = Hearsay::default();
        let said = says(5, true, &[]);
        assert!(hearsay.matters(&set, &said, false));
        assert!(hearsay.take(&set, node(2), &said, false, SECOND));
        assert_eq!(hearsay.gone(), tasks(&[2]));
        let elsewhere = super::tests::set(&[(1, THIRD)]);
        assert!(!hearsay.matters(&elsewhere, &said, false));
    }

    #[test]
    fn only_what_changes_something_is_worth_a_look_at_its_signature() {
        let set = set(&[(1, OTHER), (2, OTHER)]);
        let mut hearsay = Hearsay::default();
        assert!(!hearsay.matters(&set, &says(5, false, &[1, 2]), false));
        assert!(hearsay.matters(&set, &says(5, false, &[1, 2]), true), "it wants to be told");
        assert!(hearsay.matters(&set, &says(6, false, &[1]), false));
        hearsay.take(&set, node(2), &says(6, false, &[1]), false, SECOND);
        assert!(hearsay.matters(&set, &says(7, false, &[1]), false), "it is to be believed for longer");
        assert!(hearsay.matters(&set, &says(8, false, &[1, 2]), false));
    }

    /// A node with its tasks, and everybody whom it may tell.
    struct Speaker(Telling, BTreeSet<TaskId>);
    impl Speaker {
        fn due(&mut self, served: bool, seconds: f64) -> Option<(u64, bool, usize)> {
            let own = Own { at: THIRD, alive: &self.1, served };
            let told = self.0.due(own, || [OTHER, THIRD].into(), Duration::from_secs_f64(seconds))?;
            Some((told.parts[0].number, told.parts[0].served, told.to.len()))
        }
        fn asked(&mut self, said: &Alive, served: bool, seconds: f64) -> Option<BTreeSet<IpAddr>> {
            let own = Own { at: THIRD, alive: &self.1, served };
            Some(self.0.asked(OTHER, said, own, Duration::from_secs_f64(seconds))?.to)
        }
    }

    #[test]
    fn nobody_is_told_anything_as_long_as_servers_hear_everybody() {
        let mut speaker = Speaker(Telling::new(7), tasks(&[1]));
        assert_eq!(speaker.due(true, 0.0), None);
        speaker.1.clear();
        assert_eq!(speaker.due(true, 1.0), None);
        assert_eq!(speaker.0.next(), None);
    }

    #[test]
    fn a_node_that_nobody_hears_tells_everybody_again_and_again_and_when_that_is_over() {
        let mut speaker = Speaker(Telling::new(7), tasks(&[1]));
        assert_eq!(speaker.due(true, 0.0), None);
        assert_eq!(speaker.due(false, 1.0), Some((8, false, 2)));
        assert_eq!(speaker.due(false, 1.1), None);
        assert_eq!(speaker.due(false, 1.2), Some((9, false, 2)), "the first may be lost");
        assert_eq!(speaker.0.next(), Some(Duration::from_millis(2200)));
        assert_eq!(speaker.due(false, 2.2), Some((10, false, 2)));
        speaker.1.clear();
        assert_eq!(speaker.due(false, 2.3), Some((11, false, 2)), "at once");
        assert_eq!(speaker.due(true, 2.4), Some((12, true, 2)));
        assert_eq!(speaker.due(true, 2.6), Some((13, true, 2)));
        assert_eq!((speaker.due(true, 9.0), speaker.0.next()), (None, None));
    }

    #[test]
    fn who_asks_is_told_and_hears_of_changes_until_it_asks_no_more() {
        let mut speaker = Speaker(Telling::new(7), tasks(&[1]));
        assert_eq!(speaker.due(true, 0.0), None);
        assert_eq!(speaker.asked(&says(1, true, &[]), true, 0.5), None, "a server hears it");
        assert_eq!(speaker.asked(&says(2, false, &[]), true, 1.0), Some([OTHER].into()));
        speaker.1.clear();
        assert_eq!(speaker.due(true, 2.0), Some((9, true, 1)));
        speaker.1 = tasks(&[1]);
        assert_eq!(speaker.due(true, 5.1), None, "four seconds after it has asked");
        assert_eq!(speaker.asked(&says(3, false, &[]), false, 6.0), None, "it is told like everybody");
        assert_eq!(speaker.due(false, 6.0), Some((10, false, 2)));
    }
}
