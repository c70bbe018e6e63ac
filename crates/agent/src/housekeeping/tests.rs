//! Housekeeping with a fake engine, a fake disk and a fake server, by a clock that is told to move.

use std::{io, path::Path, result::Result};

use async_trait::async_trait;
use wharf_api::transport::{
    Body, CallError,
    node::{AskNeeded, FetchImage, FindImage, FoundImage, NeededImages},
};
use wharf_process::{ManualClock, Millis, Shutdown, Tasks};

use super::{disks::Space, *};
use crate::{
    images::ImageSource,
    registry::RegistryLogins,
    runtime::{FakeRuntime, fake::FakeImage},
};

/// A disk of 1,000 bytes on which each image of the engine takes up 50, and something else the rest.
#[derive(Debug)]
struct Disk {
    engine: FakeRuntime,
    other: Mutex<u64>,
}
impl Disks for Disk {
    fn space(&self, path: &Path) -> io::Result<Space> {
        let total = 1_000;
        if path != Path::new("/var/lib/engine") {
            return Ok(Space { device: 2, total, free: total, ..Space::default() });
        }
        let used = *self.other.lock() + self.engine.image_count() as u64 * 50;
        Ok(Space { device: 1, total, free: total - used, ..Space::default() })
    }
}

/// A server to which these images, by identifier, are needed.
struct Server(BTreeMap<String, String>);
#[async_trait]
impl ImageSource for Server {
    async fn find(&self, _: &FindImage) -> Result<FoundImage, CallError> {
        unreachable!("nobody looks for images here")
    }
    async fn fetch(&self, _: &FetchImage) -> Result<Body, CallError> {
        unreachable!("nobody fetches images here")
    }
    async fn needed(&self, _: &AskNeeded) -> Result<NeededImages, CallError> {
        Ok(NeededImages { needed: self.0.clone() })
    }
}
struct House {
    folder: tempfile::TempDir,
    engine: FakeRuntime,
    disk: Arc<Disk>,
    images: Arc<Images>,
    clock: ManualClock,
    keeper: Housekeeper,
    _tasks: Tasks,
}

fn id(name: &str) -> String {
    FakeImage::published(name).id
}

impl House {
    /// With images `a:1` to `a:9`, each used a minute after the one before, of which Wharf has pulled all but the last.
    async fn new() -> Self {
        let tasks = Tasks::new(&Shutdown::new());
        let clock = ManualClock::at(Millis(1_000_000_000));
        let engine = FakeRuntime::new(&tasks, Arc::new(clock.clone()));
        let disk = Arc::new(Disk { engine: engine.clone(), other: Mutex::new(390) });
        let folder = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::new(None, RegistryLogins::new(None)));
        let keeper = Self::keeper(&folder, &engine, &images, &disk, &clock);
        let house = Self { folder, engine, disk, images, clock, keeper, _tasks: tasks };
        for n in 1..=9 {
            house.bring(&format!("a:{n}"), n < 9).await;
            house.clock.advance(Duration::from_mins(1));
        }
        house.clock.advance(RECENT);
        house
    }

    fn keeper(
        folder: &tempfile::TempDir,
        engine: &FakeRuntime,
        images: &Arc<Images>,
        disk: &Arc<Disk>,
        clock: &ManualClock,
    ) -> Housekeeper {
        let (runtime, disks) = (Arc::new(engine.clone()), Arc::clone(disk));
        let clock = Arc::new(clock.clone());
        Housekeeper::new(runtime, Arc::clone(images), clock, disks, folder.path().to_owned())
    }

    async fn bring(&self, name: &str, pulled: bool) {
        let image = FakeImage::published(name);
        self.engine.load_image(name, image.clone());
        let local = LocalImage { id: image.id, has_healthcheck: false, pulled };
        let named = Image { digest: image.digest, ..Image::named(name) };
        self.keeper.used(&named, &local, false).await;
    }

    fn server_needs(&self, names: &[&str]) {
        let needed = names.iter().map(|name| (id(name), "release 1 of prod/shop".to_owned())).collect();
        self.images.connect(Arc::new(Server(needed)));
    }

    fn removed(&self) -> Vec<String> {
        let calls = self.engine.calls();
        let all: BTreeMap<_, _> = (1..=9).map(|n| (id(&format!("a:{n}")), format!("a:{n}"))).collect();
        calls.iter().filter_map(|call| Some(all[call.strip_prefix("remove_image ")?].clone())).collect()
    }
}

fn wanted() -> Wanted {
    Wanted {
        data_root: Some("/var/lib/engine".into()),
        marks: Some(DiskMarks::default()),
        ..Wanted::default()
    }
}

#[tokio::test]
async fn below_the_high_mark_nothing_is_removed_and_people_are_told_how_full_it_is() {
    let house = House::new().await;
    house.server_needs(&[]);
    assert!(house.keeper.look(&wanted()).await, "there is news");
    let told = house.keeper.told();
    assert_eq!(told.disks.iter().map(DiskFacts::percent).collect::<Vec<_>>(), [84, 0]);
    assert_eq!(told.images.len(), 9, "all that tasks ran from, whoever brought it");
    assert_eq!(house.removed(), Vec::<String>::new());
    *house.disk.other.lock() = 399;
    assert!(!house.keeper.look(&wanted()).await, "less than a hundredth is no news");
}

#[tokio::test]
async fn room_is_made_down_to_the_low_mark_and_the_least_recently_used_goes_first() {
    let house = House::new().await;
    house.server_needs(&["a:2"]);
    *house.disk.other.lock() = 470;
    house.keeper.look(&wanted()).await;
    assert_eq!(house.removed(), ["a:1", "a:3", "a:4"], "92 % is too much, 77 % is not, and a:2 is needed");
    let told = house.keeper.told();
    assert_eq!(told.disks[0].percent(), 77);
    assert_eq!(
        told.cleanup.unwrap().said,
        "removed 3 images that nobody needs, because its disk was too full: a:1, a:3, a:4"
    );
    assert_eq!(told.problem, None);
}

#[tokio::test]
async fn nothing_goes_before_it_is_known_how_full_the_disk_may_be() {
    let house = House::new().await;
    house.server_needs(&[]);
    *house.disk.other.lock() = 470;
    house.keeper.look(&Wanted { marks: None, ..wanted() }).await;
    assert_eq!(house.keeper.told().disks[0].percent(), 92);
    assert_eq!(house.removed(), Vec::<String>::new());
    assert_eq!(house.keeper.told().problem, None);
    let marks = Some("94,95,96".parse().unwrap());
    house.keeper.look(&Wanted { marks, ..wanted() }).await;
    assert_eq!(house.removed(), Vec::<String>::new());
    house.keeper.look(&wanted()).await;
    assert_eq!(house.removed(), ["a:1", "a:2", "a:3"], "that is too full by the marks that every node has");
}

#[tokio::test]
async fn where_nothing_can_go_people_are_told() {
    let house = House::new().await;
    *house.disk.other.lock() = 500;
    house.keeper.look(&wanted()).await;
    assert_eq!(house.removed(), Vec::<String>::new(), "no server has said what is needed");
    let problem = house.keeper.told().problem.unwrap();
    assert_eq!(problem, "nothing is left on the engine's disk that Wharf could remove");
    *house.disk.other.lock() = 100;
    house.keeper.look(&wanted()).await;
    assert_eq!(house.keeper.told().problem, None);
}

#[tokio::test]
async fn a_dry_run_says_what_the_real_one_then_does() {
    let house = House::new().await;
    house.server_needs(&["a:2"]);
    let wanted = Wanted { assigned: vec![Image::named("a:3")], ..wanted() };
    let ask = Prune { dry_run: true, everything: false };
    let would = house.keeper.prune(&ask, &wanted).await.unwrap();
    assert_eq!(house.removed(), Vec::<String>::new());
    let done = house.keeper.prune(&Prune { dry_run: false, ..ask }, &wanted).await.unwrap();
    let names = |pruned: &Pruned| pruned.removed.iter().map(|thing| thing.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&would), ["a:1", "a:4", "a:5", "a:6", "a:7", "a:8"]);
    assert_eq!((names(&done), &would.kept), (names(&would), &done.kept));
    assert_eq!(house.removed(), names(&done));
    assert_eq!(done.freed, Bytes(300), "as measured");
    let kept: Vec<_> = done.kept.iter().map(|thing| format!("{}: {}", thing.name, thing.why)).collect();
    assert_eq!(
        kept,
        [
            "a:2: release 1 of prod/shop needs it",
            "a:3: a task that is assigned here wants it",
            "a:9: Wharf did not bring it"
        ]
    );
}

#[tokio::test]
async fn an_agent_that_restarts_remembers_what_is_wharfs() {
    let house = House::new().await;
    house.server_needs(&[]);
    let next = House::keeper(&house.folder, &house.engine, &house.images, &house.disk, &house.clock);
    next.look(&wanted()).await;
    let pruned = next.prune(&Prune { dry_run: true, everything: false }, &wanted()).await.unwrap();
    assert_eq!((pruned.removed.len(), pruned.kept.len()), (8, 1), "{:?}", pruned.kept);
    assert_eq!(next.told().images.len(), 9);
}

#[tokio::test]
async fn what_a_task_runs_from_is_of_use() {
    let house = House::new().await;
    house.server_needs(&[]);
    let wanted = Wanted { running: [id("a:1")].into(), ..wanted() };
    *house.disk.other.lock() = 410;
    house.keeper.look(&wanted).await;
    assert_eq!(house.removed(), ["a:2", "a:3"], "a:1 has just been of use");
}
