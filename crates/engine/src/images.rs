//! Which images are needed: by releases that an app may return to, and by tasks that run.
//!
//! A node asks before it removes any. An image is needed as soon as one of its names, digests or its identifier is what a kept release, a
//! kept revision or an unfinished task has; what is not pinned is needed by its name.

use std::collections::BTreeMap;

use wharf_model::{Image, MountSource, ServiceSpec};

use crate::World;

/// An image, as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownImage {
    /// The engine's identifier of it.
    pub id: String,
    /// Its names: `mariadb:11`.
    pub names: Vec<String>,
    /// Its digests at registries, `sha256:…` without the repository.
    pub digests: Vec<String>,
}

/// Of these images those that are needed, by identifier, and by whom: `release 3 of prod/shop`.
pub fn needed_images(world: &World, images: &[KnownImage]) -> BTreeMap<String, String> {
    let mut by_pin = BTreeMap::<&str, Vec<&str>>::new();
    let mut by_name = BTreeMap::<String, Vec<&str>>::new();
    for image in images {
        let pins = image.digests.iter().chain([&image.id]);
        pins.for_each(|pin| by_pin.entry(pin).or_default().push(&image.id));
        image.names.iter().for_each(|name| by_name.entry(full_name(name)).or_default().push(&image.id));
    }
    let mut needed = BTreeMap::new();
    let mut note = |image: &Image, by: &dyn Fn() -> String| {
        let pins = image.digest.iter().chain(&image.id);
        let mut found: Vec<_> = pins.filter_map(|pin| by_pin.get(pin.as_str())).flatten().collect();
        if image.digest.is_none() && image.id.is_none() {
            found.extend(by_name.get(&full_name(&image.reference)).into_iter().flatten());
        }
        for id in found {
            needed.entry((*id).to_owned()).or_insert_with(by);
        }
    };
    for app in world.apps() {
        for release in world.releases_of(&app.key) {
            let by = || format!("release {} of {}", release.number, app.key);
            release.images.values().for_each(|image| note(image, &by));
            release.spec.services.values().for_each(|spec| note_mounted(spec, &mut note, &by));
        }
        for key in world.revised_services(&app.key) {
            for revision in world.revisions_of(key) {
                let by = || format!("release {} of {}", revision.release, app.key);
                note(&revision.image, &by);
                note_mounted(&revision.spec, &mut note, &by);
            }
        }
    }
    for task in world.tasks().filter(|task| !task.is_over()) {
        let by = || format!("the task {}", task.name());
        if let Some(revision) = world.revision_of(&task.service, task.generation) {
            note(&revision.image, &by);
        }
        if let Some(id) = &task.status.image_id {
            note(&Image { id: Some(id.clone()), ..Image::named("") }, &by);
        }
    }
    needed
}

fn note_mounted(
    spec: &ServiceSpec,
    note: &mut impl FnMut(&Image, &dyn Fn() -> String),
    by: &dyn Fn() -> String,
) {
    for mount in &spec.container.mounts {
        match &mount.source {
            MountSource::Image { image, .. } => {
                let digest = image.split_once('@').map(|(_, digest)| digest.to_owned());
                note(&Image { digest, ..Image::named(image.clone()) }, by);
            }
            MountSource::Volume { .. }
            | MountSource::Anonymous { .. }
            | MountSource::Bind { .. }
            | MountSource::Tmpfs { .. } => {}
        }
    }
}

/// One spelling for each name: without what Docker adds by itself, and with a tag.
fn full_name(name: &str) -> String {
    let short = ["docker.io/library/", "docker.io/", "index.docker.io/library/", "index.docker.io/"];
    let name = short.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::{Cluster, app, app_key, by, images, service};

    fn known(image: &Image) -> KnownImage {
        KnownImage {
            id: image.id.clone().unwrap_or_else(|| format!("id of {}", image.reference)),
            names: vec![image.reference.clone()],
            digests: image.digest.clone().into_iter().collect(),
        }
    }

    #[test]
    fn names_are_compared_in_one_spelling() {
        for name in ["nginx", "nginx:latest", "docker.io/library/nginx", "docker.io/library/nginx:latest"] {
            assert_eq!(full_name(name), "nginx:latest");
        }
        assert_eq!(full_name("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(full_name("a/b@sha256:1"), "a/b@sha256:1");
    }

    #[test]
    fn what_only_the_way_back_has_is_needed_and_says_by_what() {
        let mut cluster = Cluster::of(1);
        for image in ["one", "two"] {
            cluster.up(&app(&[("web", service(image))]));
            cluster.settle();
        }
        let release = |n: u64| cluster.world.release(&app_key(), wharf_model::ReleaseNumber(n)).unwrap();
        let first = known(release(1).images.values().next().unwrap());
        let stranger = KnownImage {
            id: "other".into(),
            names: vec!["other:1".into()],
            digests: vec!["sha256:0".into()],
        };
        let needed = needed_images(&cluster.world, &[first.clone(), stranger]);
        assert_eq!(needed, [(first.id, "release 1 of prod/shop".to_owned())].into());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is released, in whatever order: every image of every kept release is needed, however a node knows it.
        #[test]
        fn every_image_of_every_kept_release_is_needed(released in proptest::collection::vec((0_u8..4, 0_u8..6, 0_u8..3), 1..12)) {
            let mut cluster = Cluster::of(1);
            for (service_name, image, pin) in released {
                let name = format!("s{service_name}");
                let spec = app(&[(name.as_str(), service(&format!("image{image}")))]);
                let mut pinned = images(&spec);
                for image in pinned.values_mut() {
                    let digest = Some(format!("sha256:{}", image.reference));
                    let id = Some(format!("sha256:id-{}", image.reference));
                    (image.digest, image.id) = match pin {
                        0 => (digest, None),
                        1 => (None, id),
                        _ => (None, None),
                    };
                }
                if let Ok(changes) = crate::release(&cluster.world, &app_key(), &spec, &pinned, &by(), cluster.now) {
                    cluster.apply(&changes);
                    cluster.settle();
                }
            }
            let releases: Vec<_> = cluster.world.releases_of(&app_key()).cloned().collect();
            prop_assert!(!releases.is_empty());
            for image in releases.iter().flat_map(|release| release.images.values()) {
                let known = known(image);
                prop_assert!(needed_images(&cluster.world, std::slice::from_ref(&known)).contains_key(&known.id));
            }
        }
    }
}
