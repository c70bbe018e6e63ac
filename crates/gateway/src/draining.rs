//! What is still under way with tasks that the table no longer has, and how many clients are connected.
//!
//! - An endpoint is handed in when it has left the table and gets nothing new. What it still has was counted before that, so its number only
//!   falls; a claim that finds its endpoint retired and gives up again may show for a moment.
//! - A task counts by all its endpoints together, and not while the table has any of them.
//! - What is under way with tasks that are [given up](Draining::give_up) is ended, each thing by whoever has it. A task that the table still leads to
//!   is not given up, whoever says so.
//! - Whoever watches [`Draining::changes`] hears at once when an endpoint has nothing left, and when the last client is gone. Numbers that merely
//!   fall are for those who ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;
use wharf_model::TaskId;

/// An endpoint, in whichever part of the gateway it is.
pub(crate) trait InUse: Send + Sync {
    /// Whose it is.
    fn task(&self) -> TaskId;
    /// Requests and connections that are under way with it (`SeqCst`: whoever was counted before it was retired is seen after).
    fn under_way(&self) -> u64;
    /// Ends what is under way with it: nothing more comes of that. It is retired.
    fn give_up(&self);
}

/// The gateway's endpoints that leave, and its clients.
#[derive(Default)]
pub(crate) struct Draining {
    state: Mutex<State>,
    clients: AtomicU64,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    leaving: Vec<Arc<dyn InUse>>,
    /// The tasks that the table has.
    present: BTreeSet<TaskId>,
}

impl Draining {
    /// An endpoint has left the table, and is retired.
    pub(crate) fn leave(&self, endpoint: Arc<dyn InUse>) {
        self.state.lock().leaving.push(endpoint);
    }

    /// The table has endpoints of these tasks; it is served from now on.
    pub(crate) fn serve(&self, present: BTreeSet<TaskId>) {
        let mut state = self.state.lock();
        state.present = present;
        // What it has nothing left of cannot get anything again.
        state.leaving.retain(|endpoint| endpoint.under_way() > 0);
        drop(state);
        self.changed.send_replace(());
    }

    /// Ends what is under way with those of these tasks that the table does not have. Whether there is anything.
    pub(crate) fn give_up(&self, is_gone: impl Fn(&TaskId) -> bool) -> bool {
        let state = self.state.lock();
        let away = |task| is_gone(&task) && !state.present.contains(&task);
        let gone = state.leaving.iter().filter(|endpoint| away(endpoint.task()));
        let gone: Vec<_> = gone.map(Arc::clone).collect();
        drop(state);
        // Not under the lock: what ends says so here.
        gone.iter().for_each(|endpoint| endpoint.give_up());
        !gone.is_empty()
    }

    /// A retired endpoint has nothing left.
    pub(crate) fn ended(&self) {
        self.state.lock().leaving.retain(|endpoint| endpoint.under_way() > 0);
        self.changed.send_replace(());
    }

    /// Tasks that the table does not have, and what is under way with each.
    pub(crate) fn now(&self) -> BTreeMap<TaskId, u64> {
        let state = self.state.lock();
        let mut tasks = BTreeMap::new();
        for endpoint in state.leaving.iter().filter(|endpoint| !state.present.contains(&endpoint.task())) {
            let under_way = endpoint.under_way();
            if under_way > 0 {
                *tasks.entry(endpoint.task()).or_default() += under_way;
            }
        }
        tasks
    }

    /// Tells when something has come to an end.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Counts a client until it is dropped.
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        self.clients.fetch_add(1, Ordering::Relaxed);
        Client(Arc::clone(self))
    }

    /// Clients that are connected, whatever they do.
    pub(crate) fn clients(&self) -> u64 {
        self.clients.load(Ordering::Relaxed)
    }
}

/// A client that is connected.
pub(crate) struct Client(Arc<Draining>);

impl Drop for Client {
    fn drop(&mut self) {
        if self.0.clients.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Used(u8, AtomicU64);
    impl InUse for Used {
        fn task(&self) -> TaskId {
            task(self.0)
        }
        fn under_way(&self) -> u64 {
            self.1.load(Ordering::SeqCst)
        }
        fn give_up(&self) {
            self.1.store(0, Ordering::SeqCst);
        }
    }
    fn task(number: u8) -> TaskId {
        TaskId::from_parts(1, [number; 10])
    }
    fn used(number: u8, under_way: u64) -> Arc<Used> {
        Arc::new(Used(number, AtomicU64::new(under_way)))
    }

    #[test]
    fn a_task_drains_by_all_its_endpoints_and_not_while_the_table_has_one() {
        let draining = Draining::default();
        let (port, route, idle) = (used(1, 2), used(1, 3), used(2, 0));
        for endpoint in [&port, &route, &idle] {
            draining.leave(Arc::clone(endpoint) as Arc<dyn InUse>);
        }
        draining.serve(BTreeSet::from([task(1)]));
        assert_eq!(draining.now(), BTreeMap::new(), "it is still in the table");
        draining.serve(BTreeSet::new());
        assert_eq!(draining.now(), BTreeMap::from([(task(1), 5)]));
        let mut changes = draining.changes();
        port.1.store(0, Ordering::SeqCst);
        draining.ended();
        assert!(changes.has_changed().unwrap());
        assert_eq!(draining.now(), BTreeMap::from([(task(1), 3)]));
        changes.mark_unchanged();
        route.1.store(0, Ordering::SeqCst);
        draining.ended();
        assert_eq!(draining.now(), BTreeMap::new());
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn only_what_has_left_for_good_is_given_up() {
        let draining = Draining::default();
        let (gone, leaving, moved) = (used(1, 2), used(2, 3), used(3, 4));
        for endpoint in [&gone, &leaving, &moved] {
            draining.leave(Arc::clone(endpoint) as Arc<dyn InUse>);
        }
        draining.serve(BTreeSet::from([task(3)]));
        assert!(draining.give_up(|it| [task(1), task(3)].contains(it)));
        assert_eq!([gone, leaving, moved].map(|it| it.under_way()), [0, 3, 4]);
        assert!(!draining.give_up(|it| *it == task(4)));
    }

    #[test]
    fn the_last_client_is_missed_at_once() {
        let draining = Arc::new(Draining::default());
        let (one, two) = (draining.client(), draining.client());
        let changes = draining.changes();
        drop(one);
        assert!(!changes.has_changed().unwrap() && draining.clients() == 1);
        drop(two);
        assert!(changes.has_changed().unwrap() && draining.clients() == 0);
    }
}
