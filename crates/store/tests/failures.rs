//! What the embedded store does when the process is killed, the file is damaged, or the disk is full.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and says so when it skips"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use redb::ReadableTable;
use tokio::time::timeout;
use wharf_process::errors::chain;
use wharf_store::{Backend, Batch, Embedded, Revision, StoreError, embedded::Options};

const SOON: Duration = Duration::from_secs(30);
/// Set for the child that [`a_killed_process_loses_nothing_it_acknowledged`] starts.
const CHILD: &str = "WHARF_TEST_STORE_TO_WRITE";

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("cluster.db")
}

/// Not a test of its own: the process that is killed by the test below.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "how a test tells its child what to do")]
async fn the_process_that_is_killed() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let store = Embedded::open(path).await.unwrap();
    let writer = |writer: usize| {
        let store = store.clone();
        async move {
            for n in 0_u64.. {
                let batch = Batch::new()
                    .put(format!("k/{writer}"), n.to_string())
                    .put(format!("all/{writer}/{n}"), "x");
                let revision = store.commit(batch).await.unwrap();
                // One write call per line: a line is there or not.
                std::io::stdout().write_all(format!("ack {writer} {n} {revision}\n").as_bytes()).unwrap();
            }
        }
    };
    join_all((0..8).map(writer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 1..=3 {
        kill_in_the_middle(&file(&folder), 300 * round, &mut acknowledged);
        let store = Embedded::open(file(&folder)).await.unwrap();
        let read = store.read("all/").await.unwrap();
        for (key, revision) in &acknowledged {
            let entry = read.entries.get(key).unwrap_or_else(|| panic!("{key} was acknowledged and is gone"));
            assert!(entry.written_at >= Revision(*revision), "{key} is older than what was acknowledged");
        }
        for entry in store.read("k/").await.unwrap().entries.values() {
            let batch = read.entries.values().filter(|other| other.written_at == entry.written_at);
            assert_eq!(batch.count(), 1, "a batch is there whole");
        }
        let told = store.watch("", Revision(0)).await.unwrap().map(|event| event.unwrap().revision.0);
        let last = read.revision.0;
        let told: Vec<u64> =
            timeout(SOON, told.take_while(|r| std::future::ready(*r < last)).collect()).await.unwrap();
        let mut distinct = told.clone();
        distinct.dedup();
        assert_eq!(distinct, (1..last).collect::<Vec<_>>(), "the history has no gap");
        store.close().await;
    }
}

/// Starts a process that writes, and kills it after it has acknowledged `count` commits.
fn kill_in_the_middle(path: &Path, count: usize, acknowledged: &mut BTreeMap<String, u64>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut read = |lines: &mut dyn Iterator<Item = String>, count: usize| {
        let acks = lines.filter_map(|line| line.strip_prefix("ack ").map(str::to_owned));
        for ack in acks.take(count) {
            let parts: Vec<&str> = ack.split(' ').collect();
            let [writer, n, revision] = parts[..] else { panic!("{ack}") };
            acknowledged.insert(format!("all/{writer}/{n}"), revision.parse().unwrap());
        }
    };
    read(&mut lines, count);
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had said before it died counts as well.
    read(&mut lines, usize::MAX);
    assert!(acknowledged.len() >= count, "the process wrote something before it was killed");
}

#[tokio::test]
async fn a_second_store_on_the_same_file_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(file(&folder)).await.unwrap();
    let error = Embedded::open(file(&folder)).await.unwrap_err();
    let StoreError::InUse { path } = &error else { panic!("{}", chain(&error)) };
    assert_eq!(*path, file(&folder));
    assert!(error.to_string().contains("cluster.db` is in use by another process"), "{error}");
    assert!(error.hint().unwrap().contains("stop it"), "{error}");
    first.commit(Batch::new().put("a", "1")).await.expect("the first one is not disturbed");
    drop(first);
    Embedded::open(file(&folder)).await.expect("it is free again when the last clone is dropped");
}

#[tokio::test]
async fn a_store_in_use_by_another_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    kill_in_the_middle(&file(&folder), 1, &mut acknowledged);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env(CHILD, file(&folder))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Kept until the end: the process would fail on a closed pipe.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("ack")), "the other process writes");
    let outcome = Embedded::open(file(&folder)).await.map(drop);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(outcome, Err(StoreError::InUse { .. })), "{outcome:?}");
    Embedded::open(file(&folder)).await.expect("a killed process holds nothing");
}

/// A closed store with something in it.
async fn filled(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let store = Embedded::open(path).await.unwrap();
    for n in 0..200 {
        let batch = Batch::new().put(format!("k/{n}"), format!("value {n} ").repeat(40));
        store.commit(batch).await.unwrap();
    }
    let entries = store.read("").await.unwrap().entries;
    store.close().await;
    entries.into_iter().map(|(key, entry)| (key, entry.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_noticed_or_harmless_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let entries = filled(&file(&folder)).await;
    let whole = fs::read(file(&folder)).unwrap();
    let mut noticed = 0;
    let steps = 150;
    for step in 0..steps {
        let mut bytes = whole.clone();
        // Spread over the file, at varying offsets and bits; the header is hit as well.
        let position = (step * (bytes.len() / steps) + step * 37) % bytes.len();
        bytes[position] ^= 1 << (step % 8);
        let path = folder.path().join("flipped.db");
        fs::write(&path, &bytes).unwrap();
        match Embedded::open(&path).await {
            Err(StoreError::DamagedFile { path: named, .. }) => {
                assert_eq!(named, path);
                noticed += 1;
            }
            Err(error) => panic!("a flip at {position} is called: {}", chain(&error)),
            Ok(store) => {
                let read =
                    store.read("").await.unwrap_or_else(|error| panic!("at {position}: {}", chain(&error)));
                let read: BTreeMap<_, _> =
                    read.entries.into_iter().map(|(key, entry)| (key, entry.value)).collect();
                assert_eq!(read, entries, "a flip at {position} was not noticed");
                store.close().await;
            }
        }
        let _ = fs::remove_file(&path);
    }
    assert!(noticed > 0, "no flip hit anything that counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_is_named_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    filled(&file(&folder)).await;
    let whole = fs::read(file(&folder)).unwrap();
    for length in [0, 1, 100, 512, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        fs::write(file(&folder), &whole[..length]).unwrap();
        let error = Embedded::open(file(&folder)).await.map(drop).expect_err("it is not whole");
        let StoreError::DamagedFile { path, .. } = &error else { panic!("{length}: {}", chain(&error)) };
        assert_eq!(*path, file(&folder));
        assert!(error.to_string().contains("cluster.db` is damaged"), "{error}");
        assert!(error.hint().unwrap().contains("backup"), "{error}");
        assert_eq!(
            fs::read(file(&folder)).unwrap(),
            whole[..length],
            "cut at {length}: the file was changed"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_is_not_a_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(file(&folder), "version: 3\nservices: {}\n").unwrap();
    let error = Embedded::open(file(&folder)).await.unwrap_err();
    assert!(matches!(error, StoreError::DamagedFile { .. }), "{}", chain(&error));

    let other = folder.path().join("other.db");
    drop(redb::Database::create(&other).unwrap());
    let error = Embedded::open(&other).await.unwrap_err();
    assert!(chain(&error).ends_with("it is a database, but not of Wharf's"), "{}", chain(&error));

    let nowhere = folder.path().join("no/such/folder/cluster.db");
    let error = Embedded::open(&nowhere).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{}", chain(&error));
    assert!(chain(&error).contains("no/such/folder"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_a_newer_version_is_refused_with_both_numbers() {
    let folder = tempfile::tempdir().unwrap();
    filled(&file(&folder)).await;
    let database = redb::Database::open(file(&folder)).unwrap();
    let transaction = database.begin_write().unwrap();
    let numbers = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(numbers).unwrap().insert("schema", 9).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(file(&folder)).await.unwrap_err();
    assert!(
        error.to_string().ends_with("cluster.db` has schema 9, but this version reads schemas up to 1"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_value_is_named_and_concerns_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    filled(&file(&folder)).await;
    // Through the database, so that its own checksums are right: what a faulty memory would leave.
    let database = redb::Database::open(file(&folder)).unwrap();
    let transaction = database.begin_write().unwrap();
    let entries = redb::TableDefinition::<&str, &[u8]>::new("entries");
    {
        let mut table = transaction.open_table(entries).unwrap();
        let mut row = table.get("k/7").unwrap().unwrap().value().to_vec();
        row[20] ^= 4;
        table.insert("k/7", &*row).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);

    let store = Embedded::open(file(&folder)).await.unwrap();
    let error = store.read("k/7").await.unwrap_err();
    assert_eq!(error.to_string(), "the value under `k/7` is damaged: its checksum does not match");
    store.read("k/8").await.expect("others are whole");
    let (bad, good) = tokio::join!(
        store.commit(Batch::new().expect("k/7", Some(Revision(8))).put("other", "x")),
        store.commit(Batch::new().put("k/8", "new"))
    );
    assert!(matches!(&bad, Err(StoreError::DamagedValue { key, .. }) if key == "k/7"), "{bad:?}");
    good.expect("a commit in the same group is not concerned");
    store.commit(Batch::new().put("k/7", "mended")).await.expect("it can be written over");
    assert_eq!(store.read("k/7").await.unwrap().entries["k/7"].value, b"mended");
}

/// A small file system of its own, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`, after saying so, where mounting is not permitted.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        match mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some(&*options)) {
            Ok(()) => Some(Self(folder.to_owned())),
            Err(nix::errno::Errno::EPERM) => {
                eprintln!("SKIPPED: mounting a small file system is not permitted here");
                None
            }
            Err(error) => panic!("cannot mount a small file system: {error}"),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("what was mounted can be unmounted");
    }
}

/// Commits until the disk is full; answers with what was acknowledged.
async fn fill_up(store: &Embedded) -> (BTreeMap<String, Revision>, StoreError) {
    let mut acknowledged = BTreeMap::new();
    for n in 0_u64.. {
        let key = format!("k/{n}");
        match store.commit(Batch::new().put(&key, vec![1; 60_000])).await {
            Ok(revision) => acknowledged.insert(key, revision),
            Err(error) => return (acknowledged, error),
        };
    }
    unreachable!("a disk is finite")
}

async fn assert_whole(store: &Embedded, acknowledged: &BTreeMap<String, Revision>) {
    let read = store.read("k/").await.unwrap();
    for (key, revision) in acknowledged {
        assert_eq!(read.entries[key].written_at, *revision, "{key} was acknowledged");
        assert_eq!(read.entries[key].value, vec![1; 60_000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_commits_before_they_begin_and_reading_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = Disk::mount(folder.path(), "48m") else { return };
    let store = Embedded::open(file(&folder)).await.unwrap();
    let ballast = folder.path().join("ballast");
    fs::write(&ballast, vec![0; 24 * 1024 * 1024]).unwrap();
    let (acknowledged, error) = fill_up(&store).await;
    assert!(matches!(error, StoreError::Full { .. }), "{}", chain(&error));
    assert!(chain(&error).contains(" bytes are free, "), "{}", chain(&error));
    assert_whole(&store, &acknowledged).await;

    fs::remove_file(&ballast).unwrap();
    store.commit(Batch::new().put("after", "1")).await.expect("it goes on when there is space");
    assert_whole(&store, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_in_the_middle_of_a_commit_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = Disk::mount(folder.path(), "24m") else { return };
    // Without a reserve, commits run into the end of the disk.
    let options = Options { reserve: 0, ..Options::default() };
    let store = Embedded::open_with(file(&folder), options).await.unwrap();
    let store = Arc::new(store);
    let mut acknowledged = BTreeMap::new();
    for round in 0..3 {
        let ballast = folder.path().join("ballast");
        let filler = {
            let ballast = ballast.clone();
            // Somebody else takes the rest of the disk while we write.
            std::thread::spawn(move || {
                let mut file = fs::File::create(ballast).unwrap();
                while file.write_all(&[0; 4096]).is_ok() {}
            })
        };
        let commits = (0..64).map(|n| {
            let (store, key) = (Arc::clone(&store), format!("k/{round}-{n}"));
            async move { (store.commit(Batch::new().put(&key, vec![1; 60_000])).await, key) }
        });
        let outcomes = timeout(SOON, join_all(commits)).await.unwrap();
        filler.join().unwrap();
        let error = store.commit(Batch::new().put("no", vec![1; 60_000])).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{}", chain(&error));
        for (outcome, key) in outcomes {
            match outcome {
                Ok(revision) => drop(acknowledged.insert(key, revision)),
                Err(error) => assert!(error.is_retryable(), "{}", chain(&error)),
            }
        }
        fs::remove_file(&ballast).unwrap();
        store.commit(Batch::new().put("after", "1")).await.expect("it goes on when there is space");
        assert_whole(&store, &acknowledged).await;
        // Room for the next round.
        let clear = acknowledged.keys().fold(Batch::new(), |batch, key| batch.delete(key));
        store.commit(clear).await.unwrap();
        let latest = store.read("").await.unwrap().revision;
        store.compact(latest).await.unwrap();
        acknowledged.clear();
    }
}
