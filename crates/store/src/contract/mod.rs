//! What every backend promises, as a suite of tests that each implementation runs, fakes included.
//!
//! - [`run`] needs nothing but the backend. Each case works under a prefix of its own, so the backend need
//!   not be empty, but nobody else may write to it meanwhile.
//! - [`compaction`] needs a way to make the history short as well.
//! - A broken promise is a panic whose message names the promise.

#![expect(clippy::unwrap_used, reason = "a test says what broke by panicking")]

pub mod members;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, future::join_all};
use tokio::time::timeout;

use crate::{Backend, Batch, Changes, Event, PORTABLE_KEYS, Revision, StoreError};

/// How long anything may take before it counts as never.
const SOON: Duration = Duration::from_secs(20);

/// Checks every promise of [`Backend`] but those about compaction.
pub async fn run(backend: &Arc<dyn Backend>) {
    let store = &**backend;
    a_key_is_created_once(store).await;
    a_conflict_names_the_first_key_that_is_not_as_expected(store).await;
    a_batch_is_made_whole_or_not_at_all(store).await;
    revisions_grow_and_a_batch_has_one(store).await;
    a_batch_that_changes_nothing_makes_no_revision(store).await;
    a_deleted_key_can_be_created_again(store).await;
    a_prefix_is_exactly_a_prefix(store).await;
    values_are_any_bytes(store).await;
    a_batch_of_portable_size_is_taken(store).await;
    many_keys_are_read_at_one_revision(store).await;
    a_watch_misses_nothing_whenever_it_began(store).await;
    a_watch_is_silent_about_other_prefixes(store).await;
    concurrent_changes_on_condition_lose_none(backend).await;
    what_a_watch_tells_adds_up_to_what_is_read(backend).await;
}

async fn a_key_is_created_once(store: &dyn Backend) {
    let create = Batch::new().expect("once/a", None).put("once/a", "1");
    let first = store.commit(create.clone()).await.unwrap();
    let again = store.commit(create).await.unwrap_err();
    assert!(again.is_conflict(), "a key is created once: {again}");
    let snapshot = store.read("once/").await.unwrap();
    assert_eq!(snapshot.entries["once/a"].written_at, first, "an entry tells which commit wrote it");
    assert!(snapshot.revision >= first, "a read is not older than what was acknowledged before it");
}

async fn a_conflict_names_the_first_key_that_is_not_as_expected(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("named/a", "1").put("named/b", "1")).await.unwrap();
    let second = store.commit(Batch::new().put("named/b", "2")).await.unwrap();
    let stale = Batch::new()
        .expect("named/a", Some(first))
        .expect("named/b", Some(first))
        .expect("named/c", Some(first))
        .put("named/a", "3");
    let error = store.commit(stale).await.unwrap_err();
    let StoreError::Conflict { key, expected, found } = error else { panic!("a conflict, not: {error}") };
    assert_eq!(
        (&*key, expected, found),
        ("named/b", Some(first), Some(second)),
        "a conflict says what it found"
    );
    let error = store.commit(Batch::new().expect("named/c", Some(first))).await.unwrap_err();
    let StoreError::Conflict { key, found, .. } = error else { panic!("a conflict, not: {error}") };
    assert_eq!((&*key, found), ("named/c", None), "an absent key is a conflict as well");
}

async fn a_batch_is_made_whole_or_not_at_all(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("whole/a", "1")).await.unwrap();
    let stale = Batch::new().expect("whole/a", None).put("whole/b", "2").delete("whole/a");
    assert!(store.commit(stale).await.unwrap_err().is_conflict());
    assert_eq!(keys(store, "whole/").await, ["whole/a"], "a refused batch writes nothing");
    let both = Batch::new().expect("whole/a", Some(first)).delete("whole/a").put("whole/b", "2");
    store.commit(both).await.unwrap();
    assert_eq!(keys(store, "whole/").await, ["whole/b"], "an accepted batch writes everything");
}

async fn revisions_grow_and_a_batch_has_one(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("grow/a", "1").put("grow/b", "1")).await.unwrap();
    let second = store.commit(Batch::new().put("grow/b", "1")).await.unwrap();
    assert!(second > first, "revisions grow, also when the same value is written again");
    let snapshot = store.read("grow/").await.unwrap();
    assert_eq!(snapshot.entries["grow/a"].written_at, first);
    assert_eq!(snapshot.entries["grow/b"].written_at, second);
}

async fn a_batch_that_changes_nothing_makes_no_revision(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("same/a", "1")).await.unwrap();
    let checked = store.commit(Batch::new().expect("same/a", Some(first))).await.unwrap();
    assert_eq!(checked, first, "a batch of expectations answers with the present revision");
    let absent = store.commit(Batch::new().delete("same/absent")).await.unwrap();
    assert_eq!(absent, first, "removing what is absent changes nothing");
    let mut changes = store.watch("same/", first).await.unwrap();
    let last = store.commit(Batch::new().put("same/b", "2")).await.unwrap();
    assert_eq!(next(&mut changes).await.revision, last, "and nobody is told about it");
    let refused = store.commit(Batch::new().expect("same/a", None)).await;
    assert!(refused.is_err_and(|error| error.is_conflict()), "but expectations are checked");
}

async fn a_deleted_key_can_be_created_again(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("again/a", "1")).await.unwrap();
    store.commit(Batch::new().expect("again/a", Some(first)).delete("again/a")).await.unwrap();
    let create = Batch::new().expect("again/a", None).put("again/a", "2");
    store.commit(create).await.expect("a deleted key is absent");
}

async fn a_prefix_is_exactly_a_prefix(store: &dyn Backend) {
    let batch = Batch::new().put("pre/a", "1").put("pre/ab", "1").put("pre/b", "1").put("pre/é", "1");
    store.commit(batch.put("pref", "1").put("pre0", "1")).await.unwrap();
    assert_eq!(keys(store, "pre/").await, ["pre/a", "pre/ab", "pre/b", "pre/é"], "in the order of bytes");
    assert_eq!(keys(store, "pre/a").await, ["pre/a", "pre/ab"], "a prefix may end inside a name");
    assert!(keys(store, "pre/c").await.is_empty());
    assert!(keys(store, "").await.iter().any(|key| key == "pre/a"), "the empty prefix reads everything");
}

async fn values_are_any_bytes(store: &dyn Backend) {
    let odd: Vec<u8> = (0..=255).rev().collect();
    let large = vec![7; 900 * 1024];
    store.commit(Batch::new().put("bytes/odd", odd.clone()).put("bytes/empty", "")).await.unwrap();
    store.commit(Batch::new().put("bytes/large", large.clone())).await.unwrap();
    let entries = store.read("bytes/").await.unwrap().entries;
    let values: Vec<_> = entries.values().map(|entry| &entry.value).collect();
    assert!(values == [&Vec::new(), &large, &odd], "values come back as they were put");
}

async fn a_batch_of_portable_size_is_taken(store: &dyn Backend) {
    let name = |index: usize| format!("portable/{index:03}");
    let full = (0..PORTABLE_KEYS)
        .fold(Batch::new(), |batch, index| batch.expect(name(index), None).put(name(index), "1"));
    let revision = store.commit(full).await.expect("a batch of portable size is taken");
    let entries = store.read("portable/").await.unwrap().entries;
    assert_eq!(entries.len(), PORTABLE_KEYS);
    assert!(entries.values().all(|entry| entry.written_at == revision), "at one revision");
}

async fn many_keys_are_read_at_one_revision(store: &dyn Backend) {
    const KEYS: usize = 2_000;
    let all: Vec<String> = (0..KEYS).map(|index| format!("many/{index:05}")).collect();
    for some in all.chunks(PORTABLE_KEYS) {
        let batch = some.iter().fold(Batch::new(), |batch, key| batch.put(key, vec![1; 100]));
        store.commit(batch).await.unwrap();
    }
    assert_eq!(keys(store, "many/").await, all);
}

async fn a_watch_misses_nothing_whenever_it_began(store: &dyn Backend) {
    let first = store.commit(Batch::new().put("miss/a", "1")).await.unwrap();
    let mut live = store.watch("miss/", first).await.unwrap();
    let second =
        store.commit(Batch::new().put("miss/c", "3").delete("miss/a").put("miss/b", "2")).await.unwrap();
    let mut middle = store.watch("miss/", first).await.unwrap();
    let third = store.commit(Batch::new().put("miss/a", "4")).await.unwrap();
    let mut late = store.watch("miss/", first).await.unwrap();
    let expected = [
        event(second, "miss/a", None),
        event(second, "miss/b", Some("2")),
        event(second, "miss/c", Some("3")),
        event(third, "miss/a", Some("4")),
    ];
    for (watch, began) in [(&mut live, "before"), (&mut middle, "between"), (&mut late, "after")] {
        let mut told = Vec::new();
        for _ in 0..expected.len() {
            told.push(next(watch).await);
        }
        assert_eq!(told, expected, "a watch that began {began} the changes tells each once and in order");
    }
    let mut end = store.watch("miss/", second).await.unwrap();
    assert_eq!(next(&mut end).await, expected[3], "a watch begins after its revision");
}

async fn a_watch_is_silent_about_other_prefixes(store: &dyn Backend) {
    let start = store.read("quiet/").await.unwrap().revision;
    let mut changes = store.watch("quiet/a", start).await.unwrap();
    for key in ["quiet/", "quiet/b", "quie", "quiet/a/x"] {
        store.commit(Batch::new().put(key, "1")).await.unwrap();
    }
    assert_eq!(next(&mut changes).await.key, "quiet/a/x");
}

async fn concurrent_changes_on_condition_lose_none(backend: &Arc<dyn Backend>) {
    const WRITERS: u64 = 8;
    const TIMES: u64 = 10;
    let count = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().parse::<u64>().unwrap();
    backend.commit(Batch::new().put("count/n", "0")).await.unwrap();
    let writer = || async {
        let mut revisions = Vec::new();
        while (revisions.len() as u64) < TIMES {
            let now = backend.read("count/").await.unwrap().entries["count/n"].clone();
            let more = (count(&now.value) + 1).to_string();
            let batch = Batch::new().expect("count/n", Some(now.written_at)).put("count/n", more);
            match backend.commit(batch).await {
                Ok(revision) => revisions.push(revision),
                Err(error) => assert!(error.is_conflict(), "{error}"),
            }
        }
        revisions
    };
    let revisions =
        timeout(SOON, join_all((0..WRITERS).map(|_| writer()))).await.expect("everybody gets a turn");
    let mut revisions: Vec<Revision> = revisions.into_iter().flatten().collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len() as u64, WRITERS * TIMES, "no two commits share a revision");
    let total = count(&backend.read("count/").await.unwrap().entries["count/n"].value);
    assert_eq!(total, WRITERS * TIMES, "no change is lost");
}

async fn what_a_watch_tells_adds_up_to_what_is_read(backend: &Arc<dyn Backend>) {
    const WRITERS: usize = 8;
    const TIMES: usize = 25;
    let start = backend.read("sum/").await.unwrap();
    let mut changes = backend.watch("sum/", start.revision).await.unwrap();
    let writer = |writer: usize| async move {
        for time in 0..TIMES {
            let (put, gone) = (format!("sum/{writer}/{time}"), format!("sum/{writer}/{}", time / 2));
            let batch = Batch::new().put(put, time.to_string()).put("sum/last", writer.to_string());
            let batch = if time % 3 == 0 { batch } else { batch.delete(gone) };
            backend.commit(batch).await.unwrap();
        }
    };
    timeout(SOON, join_all((0..WRITERS).map(writer))).await.expect("everybody gets a turn");
    let end = backend.commit(Batch::new().put("sum/end", "1")).await.unwrap();

    let mut told = BTreeMap::new();
    let mut last = start.revision;
    loop {
        let event = next(&mut changes).await;
        assert!(event.revision >= last, "a watch never goes back");
        last = event.revision;
        match event.value {
            Some(value) => drop(told.insert(event.key, (value, event.revision))),
            None => assert!(told.remove(&event.key).is_some(), "only what was there is removed"),
        }
        if last == end {
            break;
        }
    }
    let read = backend.read("sum/").await.unwrap().entries;
    let read: BTreeMap<_, _> =
        read.into_iter().map(|(key, entry)| (key, (entry.value, entry.written_at))).collect();
    assert_eq!(told, read, "what a watch tells adds up to what is read");
}

/// Checks what is promised about a history that was made short by `compact`, which is given the revision
/// through which to forget.
pub async fn compaction(store: &dyn Backend, compact: impl AsyncFn(Revision)) {
    let mut revisions = Vec::new();
    for index in 0..6 {
        revisions.push(store.commit(Batch::new().put("short/a", index.to_string())).await.unwrap());
    }
    let mut here = store.watch("short/", revisions[3]).await.unwrap();
    assert_eq!(next(&mut here).await.revision, revisions[4]);
    compact(revisions[3]).await;

    let mut behind = match store.watch("short/", revisions[2]).await {
        Ok(changes) => changes,
        Err(error) => return assert_compacted(&error),
    };
    let told = timeout(SOON, behind.next()).await.expect("a watch from before the history says so");
    assert_compacted(&told.expect("it says so before it ends").expect_err("it tells no part of the history"));
    assert!(
        timeout(SOON, behind.next()).await.expect("it ends").is_none(),
        "an error is the last thing said"
    );

    let mut after = store.watch("short/", revisions[3]).await.unwrap();
    assert_eq!(next(&mut after).await.revision, revisions[4], "the history after it is whole");
    assert_eq!(next(&mut here).await.revision, revisions[5], "a watch that is beyond it goes on");
    let snapshot = store.read("short/").await.unwrap();
    assert_eq!(snapshot.entries["short/a"].value, b"5", "what is present stays");
    let mut again = store.watch("short/", snapshot.revision).await.unwrap();
    let last = store.commit(Batch::new().put("short/b", "6")).await.unwrap();
    assert_eq!(next(&mut again).await.revision, last, "one can watch from what was read");
}

fn assert_compacted(error: &StoreError) {
    assert!(matches!(error, StoreError::Compacted { .. }), "the history is gone, not: {error}");
}

async fn next(changes: &mut Changes) -> Event {
    let event = timeout(SOON, changes.next()).await.expect("an event arrives in time");
    event.expect("a watch does not end").expect("a watch does not fail")
}

async fn keys(store: &dyn Backend, prefix: &str) -> Vec<String> {
    store.read(prefix).await.unwrap().entries.into_keys().collect()
}

fn event(revision: Revision, key: &str, value: Option<&str>) -> Event {
    Event { revision, key: key.to_owned(), value: value.map(|value| value.as_bytes().to_vec()) }
}
