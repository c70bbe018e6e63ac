//! Keeps the node's disks from filling up: looks at them, tells, and removes images that nobody needs.
//!
//! - Room is made when the disk of the engine is above its high mark, down to the low one, and whenever people ask for it. What goes is decided
//!   in [`removal`]; how far it must go is measured, because images share layers.
//! - Servers say what is needed. Without one nothing is removed.
//! - What is removed is logged, and told with the node's report.

pub mod disks;
mod ledger;
mod removal;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use wharf_api::transport::node::{Prune, PruneKind, Pruned, PrunedThing};
use wharf_model::{Bytes, Cleanup, DiskFacts, DiskMarks, DiskUse, Image, NodeFacts, Timestamp};
use wharf_process::{Clock, blocking};

use self::{
    disks::{Disks, Known},
    ledger::Ledger,
    removal::{Choice, Inventory, Removal, Scope, Thing, what_to_remove},
};
use crate::{
    images::Images,
    runtime::{LocalImage, NodeImage, Result, Runtime},
};

/// Between looks at the disks.
pub(crate) const LOOK: Duration = Duration::from_secs(30);
/// Between looks at the engine's images that nobody asked for.
const LOOK_AT_IMAGES: Duration = Duration::from_mins(5);
/// What was used so lately stays when room is made without anybody asking.
const RECENT: Duration = Duration::from_mins(10);
/// The same where people ask.
const JUST_NOW: Duration = Duration::from_mins(1);
/// After an attempt that made no room.
const IN_VAIN: Duration = Duration::from_mins(10);
/// Names that are told of what was removed.
const NAMED: usize = 5;

/// What there is to look after.
#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    disks: Vec<DiskFacts>,
    images: Vec<String>,
    cleanup: Option<Cleanup>,
    /// Why no room could be made, as long as that is so.
    in_vain: Option<String>,
    /// Not before, by the monotonic clock.
    next_cleanup: Duration,
    next_images: Duration,
}

/// The node's housekeeping.
#[derive(Debug)]
pub struct Housekeeper {
    runtime: Arc<dyn Runtime>,
    images: Arc<Images>,
    clock: Arc<dyn Clock>,
    disks: Arc<dyn Disks>,
    /// What the agent keeps, and volumes.
    state_dir: PathBuf,
    state: Mutex<State>,
    known: Mutex<Known>,
    /// One cleanup at a time.
    cleaning: tokio::sync::Mutex<()>,
    /// Images are not what they were.
    changed: Notify,
}

/// What the node says of its housekeeping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) disks: Vec<DiskFacts>,
    pub(crate) images: Vec<String>,
    pub(crate) cleanup: Option<Cleanup>,
    pub(crate) problem: Option<String>,
}

impl Told {
    /// The size of the file system that holds images and containers.
    pub(crate) fn engine_disk(&self) -> Option<Bytes> {
        self.disks.iter().find(|disk| disk.holds.contains(&DiskUse::Engine)).map(|disk| disk.total)
    }
}

/// What the node is to do, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// Nothing is removed by itself before these are known.
    pub(crate) marks: Option<DiskMarks>,
    /// The images of the tasks that are assigned to it.
    pub(crate) assigned: Vec<Image>,
    /// The engine's identifiers of those that tasks run from.
    pub(crate) running: BTreeSet<String>,
    /// Where the engine keeps its images, if it said so.
    pub(crate) data_root: Option<PathBuf>,
}

impl Housekeeper {
    /// Looks after what this engine keeps; remembers what it was told when it last ran.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        images: Arc<Images>,
        clock: Arc<dyn Clock>,
        disks: Arc<dyn Disks>,
        state_dir: PathBuf,
    ) -> Self {
        let ledger = Ledger::read(&state_dir.join("images.json"));
        Self {
            runtime,
            images,
            clock,
            disks,
            state_dir,
            state: Mutex::new(State { ledger, ..State::default() }),
            known: Mutex::default(),
            cleaning: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A task runs from an image; `brought` if it was fetched for that from another node.
    pub(crate) async fn used(&self, image: &Image, local: &LocalImage, brought: bool) {
        self.note(&local.id, image, local.pulled || brought).await;
    }

    /// An image was built here.
    pub(crate) async fn built(&self, id: &str, name: &str) {
        self.note(id, &Image::named(name), true).await;
    }

    async fn note(&self, id: &str, image: &Image, ours: bool) {
        let now = self.now();
        if self.state.lock().ledger.note(id, image, ours, now) {
            self.keep().await;
            self.state.lock().next_images = Duration::ZERO;
            self.changed.notify_one();
        }
    }

    /// Somebody asked what an image is: a release that wants it may be on its way.
    pub(crate) async fn asked_about(&self, image: &Image) {
        let now = self.now();
        if self.state.lock().ledger.touch_pinned(image, now) {
            self.keep().await;
        }
    }

    /// Something is known now that was not: it is looked at once.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// What the node says of it.
    pub(crate) fn told(&self) -> Told {
        let state = self.state.lock();
        Told {
            disks: state.disks.clone(),
            images: state.images.clone(),
            cleanup: state.cleanup.clone(),
            problem: state.in_vain.clone(),
        }
    }

    /// Returns when it is time to look, or when an image has come.
    pub(crate) async fn wait(&self) {
        tokio::select! {
            // Cancel-safe: a notification that is not taken is kept.
            () = self.changed.notified() => {}
            () = self.clock.sleep(LOOK) => {}
        }
    }

    /// Looks at the disks and, now and then, at the engine's images; makes room if there is too little. Whether there is news.
    pub(crate) async fn look(&self, wanted: &Wanted) -> bool {
        let before = self.told();
        self.look_at_disks(wanted).await;
        self.look_at_images(wanted).await;
        if let Some(marks) = wanted.marks {
            if self.is_above(marks.high) && self.clock.monotonic() >= self.state.lock().next_cleanup {
                self.make_room(wanted, marks).await;
            }
            if !self.is_above(marks.high) {
                let mut state = self.state.lock();
                // Above another mark the next attempt is the first one.
                (state.in_vain, state.next_cleanup) = (None, Duration::ZERO);
            }
        }
        self.told() != before
    }

    async fn look_at_disks(&self, wanted: &Wanted) {
        let mut paths = vec![(self.state_dir.clone(), DiskUse::State)];
        paths.extend(wanted.data_root.clone().map(|root| (root, DiskUse::Engine)));
        let (disks, moment) = (Arc::clone(&self.disks), self.clock.monotonic());
        let mut known = std::mem::take(&mut *self.known.lock());
        let (found, known) = blocking(move || {
            let found = known.look(&*disks, &paths, moment);
            (found, known)
        })
        .await;
        *self.known.lock() = known;
        self.state.lock().disks = found;
    }

    async fn look_at_images(&self, wanted: &Wanted) {
        let moment = self.clock.monotonic();
        if moment < self.state.lock().next_images {
            return;
        }
        // An engine that does not answer is in the report already; what was known stays.
        let Ok(images) = self.runtime.list_images().await else { return };
        self.take_in(&images, wanted).await;
        self.state.lock().next_images = moment + LOOK_AT_IMAGES;
    }

    async fn take_in(&self, images: &[NodeImage], wanted: &Wanted) {
        let now = self.now();
        let news = {
            let mut state = self.state.lock();
            let gone = state.ledger.retain(&images.iter().map(|image| image.id.as_str()).collect());
            let used = state.ledger.touch(wanted.running.iter().map(String::as_str), now);
            state.images = state.ledger.latest(NodeFacts::MOST_IMAGES);
            gone || used
        };
        if news {
            self.keep().await;
        }
    }

    /// Whether the engine's disk is used up to a mark.
    fn is_above(&self, mark: u8) -> bool {
        let state = self.state.lock();
        state.disks.iter().any(|disk| disk.holds.contains(&DiskUse::Engine) && disk.percent() >= mark)
    }

    async fn make_room(&self, wanted: &Wanted, marks: DiskMarks) {
        let ask = Prune { dry_run: false, everything: false };
        let done = self.clean(&ask, wanted, RECENT, Some(marks.low)).await;
        let still = self.is_above(marks.high);
        let mut state = self.state.lock();
        state.next_cleanup = self.clock.monotonic() + if still { IN_VAIN } else { Duration::ZERO };
        state.in_vain = still.then(|| match done {
            Ok(done) if done.removed.is_empty() => {
                "nothing is left on the engine's disk that Wharf could remove".to_owned()
            }
            Ok(_) => {
                "the engine's disk is still too full after Wharf has removed what nobody needs".to_owned()
            }
            Err(error) => format!("no room can be made on the engine's disk: {error}"),
        });
    }

    /// Removes what nobody needs, or says what that would be.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub(crate) async fn prune(&self, ask: &Prune, wanted: &Wanted) -> Result<Pruned> {
        let pruned = self.clean(ask, wanted, JUST_NOW, None).await?;
        self.changed.notify_one();
        Ok(pruned)
    }

    /// Removes until the engine's disk is used less than `until`, or everything that can go.
    async fn clean(
        &self,
        ask: &Prune,
        wanted: &Wanted,
        recent: Duration,
        until: Option<u8>,
    ) -> Result<Pruned> {
        let _alone = self.cleaning.lock().await;
        let images = self.runtime.list_images().await?;
        self.take_in(&images, wanted).await;
        let needed = self.images.needed(&images).await;
        let build_cache = self.images.build_cache().await.unwrap_or_default();
        let choice = {
            let state = self.state.lock();
            let inventory = Inventory {
                images: &images,
                ledger: &state.ledger,
                assigned: &wanted.assigned,
                needed: needed.as_ref().map_err(String::as_str),
                build_cache,
            };
            let now = self.now().0;
            let before = u64::try_from(recent.as_millis()).unwrap_or(u64::MAX);
            let used_before = Timestamp(now.saturating_sub(before));
            what_to_remove(&inventory, Scope { everything: ask.everything, used_before })
        };
        let mut pruned = kept(&choice);
        if ask.dry_run {
            pruned.removed = choice.remove.iter().map(|removal| told(removal, removal.why.clone())).collect();
            pruned.freed = Bytes(choice.remove.iter().map(|removal| removal.size).sum());
            return Ok(pruned);
        }
        self.look_at_disks(wanted).await;
        let free = self.free();
        for removal in choice.remove {
            if until.is_some_and(|mark| !self.is_above(mark)) {
                break;
            }
            self.carry_out(&removal, &mut pruned).await;
            self.look_at_disks(wanted).await;
        }
        pruned.freed = Bytes(self.free().saturating_sub(free));
        self.tell(&pruned, until.is_some());
        self.state.lock().next_images = Duration::ZERO;
        Ok(pruned)
    }

    async fn carry_out(&self, removal: &Removal, pruned: &mut Pruned) {
        let done = match &removal.what {
            Thing::Image(id) => self.runtime.remove_image(id).await,
            Thing::BuildCache => self.images.remove_build_cache().await.map(drop),
        };
        match done {
            Ok(()) => {
                tracing::info!(name = removal.name, size = removal.size, why = removal.why, "removed");
                pruned.removed.push(told(removal, removal.why.clone()));
            }
            Err(error) => {
                tracing::info!(name = removal.name, %error, "not removed");
                pruned.kept.push(told(removal, error.to_string()));
            }
        }
    }

    /// Bytes that are free where the engine keeps its images.
    fn free(&self) -> u64 {
        let state = self.state.lock();
        let engine = state.disks.iter().find(|disk| disk.holds.contains(&DiskUse::Engine));
        engine.map_or(0, |disk| disk.free.0)
    }

    /// Says in the node's report what was removed.
    fn tell(&self, pruned: &Pruned, by_itself: bool) {
        if pruned.removed.is_empty() {
            return;
        }
        let mut names: Vec<_> = pruned.removed.iter().take(NAMED).map(|thing| thing.name.clone()).collect();
        let more = pruned.removed.len().saturating_sub(NAMED);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        let images = pruned.removed.iter().filter(|thing| thing.kind == PruneKind::Image).count();
        let what = match images {
            0 => "what builds had left".to_owned(),
            1 => "1 image that nobody needs".to_owned(),
            many => format!("{many} images that nobody needs"),
        };
        let why = if by_itself { ", because its disk was too full" } else { "" };
        let said = format!("removed {what}{why}: {}", names.join(", "));
        self.state.lock().cleanup = Some(Cleanup { at: self.now(), said, freed: pruned.freed });
    }

    async fn keep(&self) {
        let (ledger, path) = (self.state.lock().ledger.clone(), self.state_dir.join("images.json"));
        let written = blocking(move || ledger.write(&path)).await;
        if let Err(error) = written {
            tracing::error!(%error, "cannot keep which images are Wharf's; a restart of the agent will forget it");
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0)
    }
}

fn told(removal: &Removal, why: String) -> PrunedThing {
    let (kind, id) = match &removal.what {
        Thing::Image(id) => (PruneKind::Image, id.clone()),
        Thing::BuildCache => (PruneKind::BuildCache, String::new()),
    };
    PrunedThing { kind, id, name: removal.name.clone(), size: Bytes(removal.size), why }
}

/// An answer with what stays, and nothing removed yet.
fn kept(choice: &Choice) -> Pruned {
    let kept = choice.keep.iter().map(|kept| PrunedThing {
        kind: PruneKind::Image,
        id: kept.id.clone(),
        name: kept.name.clone(),
        size: Bytes(kept.size),
        why: kept.because.to_string(),
    });
    Pruned { removed: Vec::new(), kept: kept.collect(), freed: Bytes(0) }
}

/// What servers are asked about images.
pub(crate) fn asked(images: &[NodeImage]) -> Vec<wharf_api::transport::node::AskedImage> {
    let one = |image: &NodeImage| wharf_api::transport::node::AskedImage {
        id: image.id.clone(),
        names: image.names.clone(),
        digests: image.digests.clone(),
    };
    images.iter().map(one).collect()
}

/// The images that are needed, by identifier, and by whom; or why no server has said so.
pub(crate) type Needed = std::result::Result<BTreeMap<String, String>, String>;

#[cfg(test)]
mod tests;
