//! The store on a real etcd, which each test starts for itself.
//!
//! Without the `etcd` program these tests say so and pass; with `WHARF_REQUIRE_ETCD=1` they fail.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says so when it skips"
)]

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::timeout;
use wharf_process::errors::chain;
use wharf_store::{
    Backend, Batch, Etcd, PORTABLE_KEYS, Revision, StoreError,
    contract::{self, members::Members},
    etcd::Options,
};

const SOON: Duration = Duration::from_secs(30);

/// Starts an etcd; `None`, after saying so, if there is none on this machine.
#[expect(clippy::disallowed_methods, reason = "a switch of the test run, not of the product")]
fn members(folder: &tempfile::TempDir, count: usize, arguments: &[&str]) -> Option<Members> {
    match Members::start(folder.path(), count, arguments) {
        Ok(members) => Some(members),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let required = std::env::var("WHARF_REQUIRE_ETCD").is_ok_and(|value| value == "1");
            assert!(!required, "WHARF_REQUIRE_ETCD=1, but there is no `etcd` here: install etcd-server");
            eprintln!("SKIPPED: there is no `etcd` on this machine (Debian: apt-get install etcd-server)");
            None
        }
        Err(error) => panic!("etcd does not start: {error}"),
    }
}

async fn connect(members: &Members) -> Etcd {
    Etcd::connect(Options::new(members.endpoints())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let Some(members) = members(&folder, 1, &[]) else { return };
    let store: Arc<dyn Backend> = Arc::new(connect(&members).await);
    contract::run(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_about_compaction() {
    let folder = tempfile::tempdir().unwrap();
    let Some(members) = members(&folder, 1, &[]) else { return };
    let store = connect(&members).await;
    contract::compaction(&store, async |through| store.compact(through).await.unwrap()).await;
    store.compact(Revision(1)).await.expect("forgetting what is forgotten is no error");
    store.compact_keeping(1_000_000).await.expect("there is not so much to keep");
    store.compact_keeping(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_etcd_serves_several_clusters() {
    let folder = tempfile::tempdir().unwrap();
    let Some(members) = members(&folder, 1, &[]) else { return };
    let ours = connect(&members).await;
    let options = Options { prefix: "/wharf/other/".to_owned(), ..Options::new(members.endpoints()) };
    let theirs = Etcd::connect(options).await.unwrap();
    let first = ours.commit(Batch::new().put("a", "ours")).await.unwrap();
    let second = theirs.commit(Batch::new().expect("a", None).put("a", "theirs")).await.unwrap();
    assert!(second > first);
    let read = theirs.read("").await.unwrap();
    assert_eq!(read.entries.len(), 1);
    assert_eq!(read.entries["a"].value, b"theirs");
    let mut changes = theirs.watch("", Revision(0)).await.unwrap();
    let told = timeout(SOON, changes.next()).await.expect("it is told").unwrap().unwrap();
    assert_eq!((told.key.as_str(), told.revision), ("a", second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_refused_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let Some(members) = members(&folder, 1, &["--max-txn-ops", "200"]) else { return };
    let store = connect(&members).await;
    let batch = |count: usize| (0..count).fold(Batch::new(), |batch, n| batch.put(format!("k/{n}"), "x"));
    let error = store.commit(batch(PORTABLE_KEYS + 1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the batch is too large: it writes 129 keys, and the store takes at most 128"
    );

    let error = store.commit(Batch::new().put("k", vec![0; 2_000_000])).await.unwrap_err();
    assert!(
        error.to_string().contains("it has 2000001 bytes, and the store takes at most 1310720"),
        "{error}"
    );

    // Options that promise more than this etcd keeps: then etcd refuses, and it is the same error.
    let options = Options { batch_keys: 1_000, batch_bytes: usize::MAX, ..Options::new(members.endpoints()) };
    let store = Etcd::connect(options).await.unwrap();
    store.commit(batch(200)).await.expect("as much as etcd was told to take");
    let error = store.commit(batch(201)).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{}", chain(&error));
    for bytes in [1_700_000, 3_000_000] {
        let error = store.commit(Batch::new().put("k", vec![0; bytes])).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_etcd_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let Some(members) = members(&folder, 1, &["--quota-backend-bytes", "4000000"]) else { return };
    let store = connect(&members).await;
    let error = loop {
        match store.commit(Batch::new().put("k", vec![0; 500_000])).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{}", chain(&error));
    assert!(chain(&error).contains(&members.endpoints()[0]), "{}", chain(&error));
    assert!(error.is_retryable());
    assert!(store.read("").await.unwrap().entries.contains_key("k"), "reading goes on");
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let endpoints = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
    let options = Options { deadline: Duration::from_millis(500), ..Options::new(endpoints) };
    let error = timeout(SOON, Etcd::connect(options)).await.unwrap().unwrap_err();
    assert!(error.is_retryable());
    let text = chain(&error);
    assert!(text.starts_with("cannot reach the store at http://127.0.0.1:1, http://127.0.0.1:2: "), "{text}");
    assert!(text.contains("refused"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_and_a_read_outlive_the_loss_of_any_member() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut members) = members(&folder, 3, &[]) else { return };
    let store = connect(&members).await;
    let mut changes = store.watch("n", Revision(0)).await.unwrap();
    let mut count = 0;
    for lost in 0..3 {
        members.kill(lost).unwrap();
        // The commit that meets the loss may have an unknown outcome; later ones succeed.
        let commit = async {
            loop {
                count += 1;
                match store.commit(Batch::new().put("n", count.to_string())).await {
                    Ok(revision) => break revision,
                    Err(error) => assert!(error.is_retryable(), "{}", chain(&error)),
                }
            }
        };
        let revision = timeout(SOON, commit).await.expect("two of three are enough");
        let read = timeout(SOON, store.read("n")).await.unwrap().unwrap();
        assert_eq!(read.entries["n"].value, count.to_string().as_bytes());
        let told = async {
            loop {
                let event = changes.next().await.unwrap().unwrap();
                if event.revision == revision {
                    break event;
                }
                assert!(event.revision < revision, "nothing is skipped");
            }
        };
        timeout(SOON, told).await.expect("the watch goes on at another member");
        members.restart(lost).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_restart_of_etcd_without_a_gap_or_a_double() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut members) = members(&folder, 1, &[]) else { return };
    let store = Etcd::connect(Options::new(members.endpoints())).await.unwrap();
    // Who asks while nobody is there gives up soon.
    let deadline = Duration::from_millis(1_000);
    let hasty = Etcd::connect(Options { deadline, ..Options::new(members.endpoints()) }).await.unwrap();
    let mut changes = store.watch("n/", Revision(0)).await.unwrap();
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            let key = format!("n/{round}/{n}");
            expected.push((store.commit(Batch::new().put(&key, "x")).await.unwrap(), key));
        }
        members.kill(0).unwrap();
        let error = hasty.commit(Batch::new().put("lost", "x")).await;
        assert!(matches!(error, Err(StoreError::Unavailable { .. })), "{error:?}");
        members.restart(0).unwrap();
        let back = async { while store.revision().await.is_err() {} };
        timeout(SOON, back).await.expect("it answers again");
    }
    let told = changes.by_ref().take(expected.len()).map(|event| event.unwrap());
    let told: Vec<_> = timeout(SOON, told.map(|event| (event.revision, event.key)).collect()).await.unwrap();
    assert_eq!(told, expected);
}
