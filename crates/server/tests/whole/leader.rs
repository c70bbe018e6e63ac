//! Elections over one store, on a clock that moves when it is told to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_model::ServerId;
use wharf_process::{Clock, ManualClock, Millis, Shutdown, Tasks};
use wharf_server::leader::{Election, Lead, Timing, Witness};
use wharf_store::{Backend, Batch, Changes, Embedded, Revision, Snapshot, StoreError};

use crate::fixture::{eventually, within};

/// A way to the store that can be cut: what is asked then is never answered.
struct Gate {
    store: Embedded,
    cut: Arc<AtomicBool>,
}
impl Gate {
    async fn pass(&self) {
        if self.cut.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}
#[async_trait]
impl Backend for Gate {
    async fn read(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.pass().await;
        self.store.read(prefix).await
    }
    async fn commit(&self, batch: Batch) -> Result<Revision, StoreError> {
        self.pass().await;
        self.store.commit(batch).await
    }
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Changes, StoreError> {
        self.store.watch(prefix, after).await
    }
}

struct Candidate {
    lead: watch::Receiver<Option<Lead>>,
    cut: Arc<AtomicBool>,
    stop: CancellationToken,
    tasks: Tasks,
}
impl Candidate {
    fn leads(&self) -> bool {
        self.lead.borrow().is_some()
    }
}

fn server(n: u8) -> ServerId {
    ServerId::from_parts(u64::from(n), [n; 10])
}

/// What is said of servers: which of them have ended.
#[derive(Default)]
struct Deaths {
    ended: watch::Sender<Vec<ServerId>>,
}
impl Witness for Deaths {
    fn ended(self: Arc<Self>, server: ServerId) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut ended = self.ended.subscribe();
            ended.wait_for(|ended| ended.contains(&server)).await.map(drop).unwrap();
        })
    }
}

struct Race {
    _folder: tempfile::TempDir,
    store: Embedded,
    clock: ManualClock,
}
impl Race {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path().join("store")).await.unwrap();
        Self { _folder: folder, store, clock: ManualClock::at(Millis(1_000_000)) }
    }
    fn candidate(&self, n: u8) -> Candidate {
        self.candidate_with(n, Arc::new(Deaths::default()))
    }
    fn candidate_with(&self, n: u8, witness: Arc<Deaths>) -> Candidate {
        let cut = Arc::new(AtomicBool::new(false));
        let gate = Arc::new(Gate { store: self.store.clone(), cut: Arc::clone(&cut) });
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let election = Election::new(gate, clock, server(n), Timing::default(), false).believing(witness);
        let (lead, stop) = (election.watch(), CancellationToken::new());
        let tasks = Tasks::new(&Shutdown::new());
        tasks.spawn("election", election.run(stop.clone()));
        Candidate { lead, cut, stop, tasks }
    }
    async fn first_leader(&self, n: u8) -> Candidate {
        let candidate = self.candidate(n);
        eventually(async || candidate.leads().then_some(())).await;
        candidate
    }
    async fn lease(&self) -> Option<Revision> {
        let entries = self.store.read("lease").await.unwrap().entries;
        entries.get("lease").map(|entry| entry.written_at)
    }
    /// A second passes, and the leader has renewed its lease. One that had not begun to wait when the clock moved needs another:
    /// it never misses two, which it could not afford.
    async fn renewal(&self) {
        let before = self.lease().await;
        for _ in 0..2 {
            self.clock.advance(Duration::from_secs(1));
            let renewed = async {
                while self.lease().await == before {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(3), renewed).await.is_ok() {
                return;
            }
        }
        panic!("the lease was not renewed");
    }
    /// A quarter of a second by this clock, and enough by the machine's for everybody to act on it.
    async fn tick(&self) {
        self.clock.advance(Duration::from_millis(250));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn one_leads_and_is_replaced_only_after_it_has_stopped_to_believe() {
    let race = Race::new().await;
    let a = race.first_leader(1).await;
    let b = race.candidate(2);
    let first = a.lead.borrow().unwrap();
    // As long as it renews, for much longer than anything lasts, nobody else leads.
    for _ in 0..20 {
        race.renewal().await;
        assert_eq!((*a.lead.borrow(), b.leads()), (Some(first), false));
    }
    a.cut.store(true, Relaxed);
    let cut_at = race.clock.monotonic();
    within(async {
        while !b.leads() {
            race.tick().await;
            assert!(!(a.leads() && b.leads()), "two lead at once");
        }
    })
    .await;
    let took = race.clock.monotonic() - cut_at;
    assert!(took >= Duration::from_secs(5), "it was given its time: {took:?}");
    let second = b.lead.borrow().unwrap();
    assert_eq!(second.term, first.term + 1);

    // What the first one decided too late is refused, whatever it believes.
    let late = race.store.commit(first.batch().put("tasks/x", "1")).await.unwrap_err();
    assert!(late.is_conflict(), "{late}");
    race.store.commit(second.batch().put("tasks/x", "1")).await.unwrap();
    // It comes back, and follows.
    a.cut.store(false, Relaxed);
    for _ in 0..10 {
        race.renewal().await;
        assert_eq!((a.leads(), *b.lead.borrow()), (false, Some(second)));
    }
}

#[tokio::test]
async fn a_leader_that_stops_hands_over_at_once_and_terms_go_on() {
    let race = Race::new().await;
    let a = race.first_leader(1).await;
    let first = a.lead.borrow().unwrap();
    race.renewal().await;
    let b = race.candidate(2);
    a.stop.cancel();
    let _ = within(a.tasks.clone().shutdown(Duration::from_secs(5))).await;
    assert!(!a.leads());
    let began = race.clock.monotonic();
    within(async {
        while !b.leads() {
            race.tick().await;
        }
    })
    .await;
    assert!(race.clock.monotonic() - began <= Duration::from_secs(2), "no lease was waited for");
    assert_eq!(b.lead.borrow().unwrap().term, first.term + 1);
}

#[tokio::test]
async fn of_several_that_wait_one_takes_over_and_the_others_let_it() {
    let race = Race::new().await;
    let a = race.first_leader(1).await;
    race.renewal().await;
    let others: Vec<_> = (2..=5).map(|n| race.candidate(n)).collect();
    // They have seen the lease.
    for _ in 0..8 {
        race.tick().await;
    }
    a.cut.store(true, Relaxed);
    let leading = || others.iter().filter_map(|other| *other.lead.borrow()).collect::<Vec<_>>();
    within(async {
        while leading().is_empty() {
            race.tick().await;
        }
    })
    .await;
    for _ in 0..20 {
        race.tick().await;
        assert_eq!(
            leading().iter().map(|lead| lead.term).collect::<Vec<_>>(),
            [2],
            "it is not displaced again"
        );
    }
}

#[tokio::test]
async fn a_leader_whose_process_has_ended_is_replaced_at_once_and_what_it_still_decides_is_refused() {
    let race = Race::new().await;
    let a = race.first_leader(1).await;
    let first = a.lead.borrow().unwrap();
    race.renewal().await;
    let deaths = Arc::new(Deaths::default());
    let b = race.candidate_with(2, Arc::clone(&deaths));
    // It has seen who leads.
    for _ in 0..8 {
        race.tick().await;
    }
    assert!(!b.leads());
    // No time passes by the clock that leases are measured with.
    a.cut.store(true, Relaxed);
    deaths.ended.send_modify(|ended| ended.push(server(1)));
    eventually(async || b.leads().then_some(())).await;
    let second = b.lead.borrow().unwrap();
    assert_eq!(second.term, first.term + 1);
    // Should it live after all, it is none the worse.
    let late = race.store.commit(first.batch().put("tasks/x", "1")).await.unwrap_err();
    assert!(late.is_conflict(), "{late}");
    a.cut.store(false, Relaxed);
    for _ in 0..10 {
        race.renewal().await;
        assert_eq!(*b.lead.borrow(), Some(second), "it is not taken back");
    }
    assert!(!a.leads());
}

#[tokio::test]
async fn the_end_of_another_server_is_no_reason_to_take_over() {
    let race = Race::new().await;
    let a = race.first_leader(1).await;
    race.renewal().await;
    let deaths = Arc::new(Deaths::default());
    deaths.ended.send_modify(|ended| ended.push(server(3)));
    let b = race.candidate_with(2, Arc::clone(&deaths));
    for _ in 0..10 {
        race.renewal().await;
        assert_eq!((a.leads(), b.leads()), (true, false));
    }
}
