//! The embedded store on real files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all};
use proptest::prelude::*;
use tokio::time::timeout;
use wharf_store::{
    Backend, Batch, Embedded, Event, Revision, StoreError, contract,
    embedded::{Options, Stats},
};

const SOON: Duration = Duration::from_secs(20);

/// The first thing a watch from `after` says.
async fn first(store: &Embedded, after: Revision) -> Result<Event, StoreError> {
    let mut changes = store.watch("", after).await.unwrap();
    timeout(SOON, changes.next()).await.expect("it says something").expect("before it ends")
}

fn file(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("cluster.db")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Backend> = Arc::new(Embedded::open(file(&folder)).await.unwrap());
    contract::run(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_about_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    contract::compaction(&store, async |through| store.compact(through).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_when_it_takes_no_more_than_any_store() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { batch_keys: wharf_store::PORTABLE_KEYS, ..Options::default() };
    let store: Arc<dyn Backend> = Arc::new(Embedded::open_with(file(&folder), options).await.unwrap());
    contract::run(&store).await;
    let many = (0..=wharf_store::PORTABLE_KEYS).fold(Batch::new(), |batch, n| batch.put(n.to_string(), "x"));
    let error = store.commit(many).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the batch is too large: it writes 129 keys, and the store takes at most 128"
    );
}

#[tokio::test]
async fn commits_that_wait_together_share_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    // On this single-threaded runtime, all are queued before anybody is polled again.
    let commits = (0..200).map(|n| store.commit(Batch::new().put(format!("k/{n}"), n.to_string())));
    let revisions = timeout(SOON, join_all(commits)).await.unwrap();
    let mut revisions: Vec<u64> = revisions.into_iter().map(|revision| revision.unwrap().0).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=200).collect::<Vec<_>>(), "each has a revision of its own");
    let Stats { commits, conflicts, transactions } = store.stats();
    assert_eq!((commits, conflicts), (200, 0));
    assert!(transactions <= 50, "200 commits in {transactions} transactions");
}

#[tokio::test]
async fn batches_of_one_group_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    let create = || Batch::new().expect("leader", None).put("leader", "me");
    let outcomes = timeout(SOON, join_all((0..50).map(|_| store.commit(create())))).await.unwrap();
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 49));
    let winner = won.into_iter().next().unwrap().unwrap();
    for error in lost.into_iter().map(Result::unwrap_err) {
        let StoreError::Conflict { key, expected, found } = error else { panic!("{error}") };
        assert_eq!((&*key, expected, found), ("leader", None, Some(winner)));
    }
    assert_eq!(store.stats().conflicts, 49);
}

#[tokio::test]
async fn a_batch_that_changes_nothing_costs_no_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    store.commit(Batch::new().expect("a", None)).await.unwrap();
    store.commit(Batch::new().delete("a")).await.unwrap();
    store.commit(Batch::new().expect("a", Some(Revision(1)))).await.unwrap_err();
    assert_eq!(store.stats(), Stats { commits: 2, conflicts: 1, transactions: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_in_the_past_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    for n in 1..=2_000 {
        let _ = store.commit(Batch::new().put("n", n.to_string())).await.unwrap();
    }
    store.close().await;

    let store = Embedded::open(file(&folder)).await.unwrap();
    let mut changes = store.watch("", Revision(10)).await.unwrap();
    store.commit(Batch::new().put("n", "last")).await.unwrap();
    for revision in 11..=2_001 {
        let event = timeout(SOON, changes.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.revision, Revision(revision), "from the file, then live, without a gap");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_as_long_as_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { history_revisions: 50, ..Options::default() };
    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    for n in 1..=300 {
        let _ = store.commit(Batch::new().put("n", n.to_string())).await.unwrap();
    }
    store.close().await;

    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    let oldest = first(&store, Revision(250)).await;
    assert_eq!(oldest.unwrap().revision, Revision(251));
    let gone = first(&store, Revision(249)).await;
    assert!(matches!(gone, Err(StoreError::Compacted { after: Revision(249) })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_do_not_make_the_history_large() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { history_bytes: 100_000, ..Options::default() };
    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    for _ in 0..40 {
        store.commit(Batch::new().put("large", vec![1; 30_000])).await.unwrap();
    }
    store.close().await;

    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    let told = first(&store, Revision(37)).await;
    assert_eq!(told.unwrap().revision, Revision(38), "three of them fit");
    let gone = first(&store, Revision(36)).await;
    assert!(matches!(gone, Err(StoreError::Compacted { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_falls_behind_the_history_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { history_revisions: 20, ..Options::default() };
    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    let mut slow = store.watch("", Revision(0)).await.unwrap();
    // More than memory keeps and the history holds, while nobody takes anything.
    let commits = (0..5_000).map(|n| store.commit(Batch::new().put(format!("k/{}", n % 7), "x")));
    for outcome in timeout(SOON, join_all(commits)).await.unwrap() {
        let _ = outcome.unwrap();
    }
    let told = timeout(SOON, slow.next()).await.unwrap().unwrap();
    assert!(matches!(told, Err(StoreError::Compacted { .. })), "{told:?}");
    assert!(timeout(SOON, slow.next()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_the_store_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    let mut changes = store.watch("", Revision(0)).await.unwrap();
    let kept = store.clone();
    store.close().await;
    let told = timeout(SOON, changes.next()).await.expect("it is told").unwrap();
    assert!(matches!(told, Err(StoreError::Unavailable { .. })), "{told:?}");
    let refused = kept.commit(Batch::new().put("a", "1")).await.unwrap_err();
    assert!(wharf_process::errors::chain(&refused).ends_with("the store is closed"), "{refused}");
    assert!(kept.read("").await.is_err());
}

#[tokio::test]
async fn a_position_in_the_future_belongs_to_another_past() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(file(&folder)).await.unwrap();
    let outcome = store.watch("", Revision(7)).await.map(drop);
    assert!(matches!(outcome, Err(StoreError::Compacted { after: Revision(7) })), "{outcome:?}");
}

/// What the store would be if it were a map and a list.
#[derive(Default)]
struct Model {
    entries: BTreeMap<String, (Vec<u8>, u64)>,
    events: Vec<Event>,
    revision: u64,
}

impl Model {
    fn commit(&mut self, batch: &Batch) -> Result<u64, String> {
        for (key, expected) in batch.expectations() {
            if self.entries.get(key).map(|(_, revision)| Revision(*revision)) != *expected {
                return Err(key.clone());
            }
        }
        let mut changed = false;
        for (key, value) in batch.writes() {
            let done = match value {
                Some(value) => {
                    self.entries.insert(key.clone(), (value.clone(), self.revision + 1));
                    true
                }
                None => self.entries.remove(key).is_some(),
            };
            if done {
                changed = true;
                let (revision, key) = (Revision(self.revision + 1), key.clone());
                self.events.push(Event { revision, key, value: value.clone() });
            }
        }
        self.revision += u64::from(changed);
        Ok(self.revision)
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// Commits these batches at once, in this order.
    Commit(Vec<Batch>),
    Reopen,
}

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/b", "a/c", "b", "b/é", ""]).prop_map(str::to_owned)
}

fn batch() -> impl Strategy<Value = Batch> {
    let expectation = (key(), prop::option::of((0..12_u64).prop_map(Revision)));
    let write = (key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..4)));
    let (expectations, writes) =
        (prop::collection::vec(expectation, 0..2), prop::collection::vec(write, 0..4));
    (expectations, writes).prop_map(|(expectations, writes)| {
        let batch = expectations.into_iter().fold(Batch::new(), |batch, (key, at)| batch.expect(key, at));
        writes.into_iter().fold(batch, |batch, (key, value)| match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        })
    })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let commit = prop::collection::vec(batch(), 1..5).prop_map(Act::Commit);
    prop::collection::vec(prop_oneof![8 => commit, 1 => Just(Act::Reopen)], 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_time: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_map_and_a_list_would_do(acts in acts(), after in any::<prop::sample::Index>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let mut store = Embedded::open(file(&folder)).await.unwrap();
            let mut model = Model::default();
            for act in acts {
                match act {
                    Act::Reopen => {
                        store.close().await;
                        store = Embedded::open(file(&folder)).await.unwrap();
                    }
                    Act::Commit(batches) => {
                        let outcomes = join_all(batches.iter().map(|batch| store.commit(batch.clone()))).await;
                        for (batch, outcome) in batches.iter().zip(outcomes) {
                            let outcome = match outcome {
                                Ok(revision) => Ok(revision.0),
                                Err(StoreError::Conflict { key, .. }) => Err(key),
                                Err(error) => panic!("{error}"),
                            };
                            prop_assert_eq!(outcome, model.commit(batch));
                        }
                    }
                }
            }
            let read = store.read("").await.unwrap();
            prop_assert_eq!(read.revision, Revision(model.revision));
            let read: BTreeMap<_, _> =
                read.entries.into_iter().map(|(key, entry)| (key, (entry.value, entry.written_at.0))).collect();
            prop_assert_eq!(read, model.entries);
            let after = Revision(after.index(usize::try_from(model.revision).unwrap() + 1) as u64);
            for prefix in ["", "a", "b/"] {
                let wanted: Vec<_> = model
                    .events
                    .iter()
                    .filter(|event| event.revision > after && event.key.starts_with(prefix))
                    .cloned()
                    .collect();
                let told = store.watch(prefix, after).await.unwrap().take(wanted.len());
                let told: Vec<_> = timeout(SOON / 4, told.map(Result::unwrap).collect()).await.unwrap();
                prop_assert_eq!(told, wanted);
            }
            Ok(())
        })?;
    }
}
