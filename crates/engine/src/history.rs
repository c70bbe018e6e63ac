//! What an app's releases are remembered by: how each of their rollouts ended, what one changed, to which one returns, and which are kept.
//!
//! - How a rollout ended is noted with its release once, and never changed: the app's record only knows the latest change.
//! - Nothing here shows a value of a variable or a command.
//! - A release is kept as long as anything refers to it: the app, its way back, or containers with its configs and secrets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use wharf_model::{
    AppKey, AppRecord, AppSpec, FileSpec, Generation, Image, Mode, Release, ReleaseNumber, ReleaseOutcome,
    ReleaseStrategy, Rollout, RolloutState, ServiceKey, ServiceName, ServicePolicy, ServiceProgress,
    ServiceRevision, ServiceSpec, SetRole, SetStats, Task, Timestamp,
};

use crate::{
    Action, Change, Operation, Plan, Thing, World, judge,
    plan::{differences, mode_reason, moved, short_digest, tasks_of_mode},
    routing, spec, strategy,
};

/// How many releases of an app are kept, whether or not anything refers to them.
const KEPT: usize = 50;

/// Notes how a rollout ended with the release that it carried out, unless it has not ended or that has been noted.
pub(crate) fn ended(world: &World, app: &AppKey, rollout: &Rollout) -> Option<Change> {
    let ended_at = rollout.ended_at.filter(|_| rollout.state.is_over())?;
    let outcome = ReleaseOutcome { state: rollout.state, reason: rollout.reason.clone(), ended_at };
    noted(world, app, rollout, outcome)
}

/// The same of a rollout in whose place a newer change comes now, wherever it is.
pub(crate) fn superseded(world: &World, app: &AppKey, now: Timestamp) -> Option<Change> {
    let rollout = &world.app(app)?.rollout;
    if rollout.state.is_over() {
        return ended(world, app, rollout);
    }
    let reason = rollout.reason.clone();
    noted(world, app, rollout, ReleaseOutcome { state: RolloutState::Superseded, reason, ended_at: now })
}

fn noted(world: &World, app: &AppKey, rollout: &Rollout, outcome: ReleaseOutcome) -> Option<Change> {
    let release = world.release(app, rollout.release?)?;
    let number = release.number;
    release.outcome.is_none().then(|| Change::SetOutcome { app: app.clone(), release: number, outcome })
}

/// The release that an app goes back to unless another is named: the latest that was done, other than what the app is now.
pub fn rollback_target<'w>(world: &'w World, app: &AppRecord) -> Option<&'w Release> {
    let current = world.release(&app.key, app.release)?;
    let other = |release: &&Release| {
        release.number != current.number
            && (&release.spec, &release.images) != (&current.spec, &current.images)
    };
    let done = |release: &&Release| {
        release.outcome.as_ref().is_some_and(|outcome| outcome.state == RolloutState::Done)
    };
    let all = || world.releases_of(&app.key).map(|release| &**release).filter(other);
    let before = || app.previous.as_ref().and_then(|previous| world.release(&app.key, previous.release));
    all().filter(done).last().or_else(|| before().map(|release| &**release).filter(other))
}

/// The releases of an app that nobody needs any more: beyond the latest ones, and nothing refers to them.
pub(crate) fn forgotten(world: &World, app: &AppRecord) -> Vec<ReleaseNumber> {
    let mut needed = BTreeSet::from([app.release]);
    needed.extend(app.previous.as_ref().map(|previous| previous.release));
    needed.extend(rollback_target(world, app).map(|release| release.number));
    // What containers mount is found by the release that their revision came with.
    let revisions = world.revised_services(&app.key).flat_map(|key| world.revisions_of(key));
    let mounting =
        revisions.filter(|revision| !revision.spec.configs.is_empty() || !revision.spec.secrets.is_empty());
    needed.extend(mounting.map(|revision| revision.release));
    let numbers: Vec<_> = world.releases_of(&app.key).map(|release| release.number).collect();
    let older = &numbers[..numbers.len().saturating_sub(KEPT)];
    older.iter().filter(|number| !needed.contains(number)).copied().collect()
}

/// What an app would be as it was in a release: the same images, configs and secrets, and as many tasks as somebody has set since.
pub fn returned(world: &World, release: &Release) -> AppSpec {
    let mut spec = release.spec.clone();
    let app = world.app(&release.app);
    // What a file asked for last: a release that returns to another one has numbers that somebody may have set.
    let mut written = app.and_then(|app| world.release(&release.app, app.release));
    while let Some(earlier) =
        written.and_then(|it| it.note.rollback_of).and_then(|number| world.release(&release.app, number))
    {
        written = Some(earlier);
    }
    for (name, service) in &mut spec.services {
        let record =
            world.services_of(&release.app).find(|record| record.key.name == *name && !record.removed);
        let file = written.and_then(|it| it.spec.services.get(name)).map(|service| service.mode);
        if let (Some(record), Some(file)) = (record, file)
            && let (Generation(_), now @ Mode::Replicated { .. }) = record.wanted()
            && let Mode::Replicated { .. } = service.mode
            && now != file
        {
            service.mode = now;
        }
    }
    spec
}

/// Whether a task is one that this generation of its service wants, and need not be replaced by another.
pub fn is_as_wanted(world: &World, task: &Task, generation: Generation) -> bool {
    strategy::fitting(world, &task.service, generation).contains(&task.generation)
}

/// As [`crate::plan`], of a release that returns to an earlier one: it goes past the steps of its services' strategies.
pub fn plan_return(
    world: &World,
    app: &AppKey,
    wanted: &AppSpec,
    images: &BTreeMap<ServiceName, Image>,
) -> Plan {
    let mut plan = crate::plan(world, app, wanted, images);
    for (name, service) in &wanted.services {
        let Some(strategy) = strategy::asked(wanted, name, service) else { continue };
        let usual = strategy::note(strategy, service.mode);
        let warm = is_kept(world, app, wanted, name, images.get(name));
        let said = if warm {
            "the tasks that served before it still run, and take over again at once"
        } else {
            "new tasks are made beside the old; all requests go there once all are ready"
        };
        let of_it =
            |operation: &&mut Operation| operation.thing == Thing::Service && operation.name == name.as_str();
        let notes = plan.operations.iter_mut().filter(of_it).flat_map(|operation| &mut operation.notes);
        notes.filter(|note| **note == usual).for_each(|note| *note = said.to_owned());
    }
    plan
}

/// Whether tasks just as a service wants them are kept from before a switch.
fn is_kept(world: &World, app: &AppKey, wanted: &AppSpec, name: &ServiceName, image: Option<&Image>) -> bool {
    let key = ServiceKey { app: app.clone(), name: name.clone() };
    let (Some(record), Some(spec)) = (world.service(&key), wanted.services.get(name)) else { return false };
    let alike = |revision: &ServiceRevision| {
        let Some(release) = world.release(app, revision.release) else { return false };
        let files = |of: &AppSpec, spec: &ServiceSpec| {
            let digests = spec::mounted_digests(spec, &of.configs, &of.secrets).into_iter();
            let owned =
                digests.map(|((kind, name), digest)| (kind, name.to_owned(), digest.map(str::to_owned)));
            owned.collect::<Vec<_>>()
        };
        image.is_some_and(|image| spec::same_image(image, &revision.image))
            && spec::container_part(&revision.spec) == spec::container_part(spec)
            && files(&release.spec, &revision.spec) == files(wanted, spec)
    };
    let kept = record.sets.iter().filter(|set| matches!(set.role, SetRole::Kept { .. }));
    kept.filter_map(|set| world.revision_of(&key, set.generation)).any(|revision| alike(revision))
}

/// What differs between two releases of an app; everything if there was none before. What is equal is left out.
pub fn compare(old: Option<&Release>, new: &Release) -> Vec<Operation> {
    let nothing = AppSpec {
        name: new.spec.name.clone(),
        services: BTreeMap::new(),
        networks: BTreeMap::new(),
        volumes: BTreeMap::new(),
        configs: BTreeMap::new(),
        secrets: BTreeMap::new(),
        externals: BTreeMap::new(),
        jobs: BTreeMap::new(),
        policy: Default::default(),
    };
    let (before, after) = (old.map_or(&nothing, |old| &old.spec), &new.spec);
    let mut found = Vec::new();
    things(&mut found, Thing::Network, &before.networks, &after.networks, differences);
    things(&mut found, Thing::Volume, &before.volumes, &after.volumes, differences);
    things(&mut found, Thing::Config, &before.configs, &after.configs, file);
    things(&mut found, Thing::Secret, &before.secrets, &after.secrets, file);
    let none = BTreeMap::new();
    let images = (old.map_or(&none, |old| &old.images), &new.images);
    services(&mut found, (&before.services, &after.services), images);
    let routes =
        routing::operations(routing::lines(before.services.iter()), routing::lines(after.services.iter()));
    found.extend(routes.into_iter().filter(|operation| operation.action != Action::Keep));
    things(&mut found, Thing::External, &before.externals, &after.externals, differences);
    things(&mut found, Thing::Job, &before.jobs, &after.jobs, differences);
    if old.is_some() && before.policy != after.policy {
        let reasons = app_policy(before, after);
        found.push(operation(Action::Change, Thing::App, &after.name, reasons));
    }
    found
}

fn operation(action: Action, thing: Thing, name: &dyn ToString, reasons: Vec<String>) -> Operation {
    Operation { action, thing, name: name.to_string(), reasons, notes: Vec::new() }
}

/// Things of one kind, by name: those that came, went or changed.
fn things<N: Ord + ToString, T: PartialEq>(
    found: &mut Vec<Operation>,
    thing: Thing,
    old: &BTreeMap<N, T>,
    new: &BTreeMap<N, T>,
    differ: impl Fn(&T, &T) -> Vec<String>,
) {
    for (name, now) in new {
        match old.get(name) {
            None => found.push(operation(Action::Create, thing, name, Vec::new())),
            Some(before) if before == now => {}
            Some(before) => {
                found.push(operation(Action::Change, thing, name, differ(before, now)));
            }
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        found.push(operation(Action::Remove, thing, name, Vec::new()));
    }
}

fn file(old: &FileSpec, new: &FileSpec) -> Vec<String> {
    let same = (old.external, &old.name, &old.digest, old.version)
        == (new.external, &new.name, &new.digest, new.version);
    vec![if same { "labels changed".to_owned() } else { moved(old, new) }]
}

fn services(
    found: &mut Vec<Operation>,
    (old, new): (&BTreeMap<ServiceName, ServiceSpec>, &BTreeMap<ServiceName, ServiceSpec>),
    (old_images, new_images): (&BTreeMap<ServiceName, Image>, &BTreeMap<ServiceName, Image>),
) {
    for (name, now) in new {
        let Some(before) = old.get(name) else {
            let reasons = vec![format!("image {}", now.image), tasks_of_mode(now.mode)];
            found.push(operation(Action::Create, Thing::Service, name, reasons));
            continue;
        };
        let images = old_images.get(name).zip(new_images.get(name));
        let image = images.and_then(|(old, new)| image(old, new));
        let replaced = image.is_some() || spec::container_part(before) != spec::container_part(now);
        let mode = (before.mode != now.mode).then(|| mode_reason(before.mode, now.mode));
        // Said elsewhere, with what it was and what it is.
        let mut rest = ServiceSpec { image: now.image.clone(), mode: now.mode, ..before.clone() };
        rest.policy.routes.clone_from(&now.policy.routes);
        let reasons: Vec<_> = image.into_iter().chain(differences(&rest, now)).chain(mode).collect();
        if !reasons.is_empty() {
            let action = if replaced { Action::Replace } else { Action::Change };
            found.push(operation(action, Thing::Service, name, reasons));
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        found.push(operation(Action::Remove, Thing::Service, name, Vec::new()));
    }
}

/// What became of an image, if it is another.
fn image(old: &Image, new: &Image) -> Option<String> {
    if spec::same_image(old, new) && old.reference == new.reference {
        return None;
    }
    let pin = |image: &Image| {
        image
            .digest
            .as_deref()
            .or(image.id.as_deref())
            .map(|pin| short_digest(pin).to_owned())
            .unwrap_or_default()
    };
    Some(if old.reference == new.reference {
        format!("image {} {} -> {}", new.reference, pin(old), pin(new))
    } else {
        format!("image {} -> {}", old.reference, new.reference)
    })
}

/// What differs in the policies of an app.
pub(crate) fn app_policy(old: &AppSpec, new: &AppSpec) -> Vec<String> {
    let mut reasons = Vec::new();
    let (was, is) = (strategy_of(old.policy.release.as_ref()), strategy_of(new.policy.release.as_ref()));
    let mut before = old.policy.clone();
    if was != is {
        reasons.push(format!("strategy {was} -> {is}"));
        before.release.clone_from(&new.policy.release);
    }
    reasons.extend(differences(&before, &new.policy).into_iter().map(in_words));
    reasons
}

/// What differs in the policies of a service, as JSON has them, but for its routes, each of which has a line of its own.
pub(crate) fn policy(old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let read = |value: Option<&Value>| -> ServicePolicy {
        value.and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
    };
    let (mut old, new) = (read(old), read(new));
    let mut reasons = Vec::new();
    let (was, is) = (strategy_of(old.release.as_ref()), strategy_of(new.release.as_ref()));
    if was != is {
        reasons.push(format!("strategy {was} -> {is}"));
        old.release.clone_from(&new.release);
    }
    old.routes.clone_from(&new.routes);
    reasons.extend(differences(&old, &new).into_iter().map(in_words));
    reasons
}

fn in_words(reason: String) -> String {
    match reason.strip_prefix("release ") {
        Some(rest) => format!("strategy {rest}"),
        None => reason,
    }
}

/// What gateways have counted of the requests to the set that serves and to the one that is brought in, since its first step began;
/// nothing where they have not said so since, or this server does not lead.
pub fn counted(
    world: &World,
    service: &ServiceKey,
    progress: &ServiceProgress,
) -> Option<(SetStats, SetStats)> {
    let now = world.figures(service)?;
    let before = progress.first.as_ref().filter(|first| first.since == now.since)?;
    let window = judge::between(before, now, &strategy::fitting(world, service, progress.generation));
    Some((window.old, window.new))
}

/// How a generation of a service takes the place of the one before, as its release says: task by task if absent.
pub fn release_strategy<'w>(
    world: &'w World,
    service: &ServiceKey,
    generation: Generation,
) -> Option<&'w ReleaseStrategy> {
    strategy::of_revision(world, world.revision_of(service, generation)?)
}

/// The name of a strategy.
pub const fn strategy_of(strategy: Option<&ReleaseStrategy>) -> &'static str {
    match strategy {
        None | Some(ReleaseStrategy::Rolling) => "rolling",
        Some(ReleaseStrategy::BlueGreen { .. }) => "blue-green",
        Some(ReleaseStrategy::Canary { .. }) => "canary",
    }
}

/// How the services of an app move to a new release: one word if all do it in one way, `canary (web), rolling` otherwise.
pub fn strategies(spec: &AppSpec) -> String {
    let mut ways = BTreeMap::<&str, Vec<&str>>::new();
    for (name, service) in &spec.services {
        let strategy = strategy_of(strategy::asked(spec, name, service));
        ways.entry(strategy).or_default().push(name.as_str());
    }
    if ways.len() < 2 {
        return ways.into_keys().next().unwrap_or("rolling").to_owned();
    }
    let said = ways.into_iter().map(|(way, names)| {
        if way == "rolling" { way.to_owned() } else { format!("{way} ({})", names.join(", ")) }
    });
    said.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use wharf_model::ReleaseNote;

    use super::*;
    use crate::{
        Request,
        fixtures::{Cluster, Script, app, app_key, by, images, key, service},
    };

    fn version(number: u32) -> AppSpec {
        let mut web = service("web");
        web.image = format!("web:{number}");
        app(&[("web", web)])
    }
    fn outcome(cluster: &Cluster, number: u64) -> Option<ReleaseOutcome> {
        cluster.world.release(&app_key(), ReleaseNumber(number)).unwrap().outcome.clone()
    }
    fn target(cluster: &Cluster) -> Option<u64> {
        let app = cluster.world.app(&app_key()).unwrap();
        rollback_target(&cluster.world, app).map(|release| release.number.0)
    }

    #[test]
    fn how_a_release_ended_stays_with_it_whatever_comes_later() {
        let mut cluster = Cluster::of(1);
        cluster.scripts.insert("web:2".into(), Script::Refuse);
        cluster.up(&version(1));
        assert_eq!(outcome(&cluster, 1), None);
        cluster.settle();
        assert_eq!(outcome(&cluster, 1).unwrap().state, RolloutState::Done);
        cluster.up(&version(2));
        cluster.settle();
        let failed = outcome(&cluster, 2).unwrap();
        assert_eq!(failed.state, RolloutState::RolledBack);
        assert!(failed.reason.contains("no such image"), "{failed:?}");
        // What is no release is noted nowhere, and takes nothing from what was.
        cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 2)])));
        cluster.settle();
        assert_eq!(outcome(&cluster, 2), Some(failed));
        assert_eq!(outcome(&cluster, 1).unwrap().state, RolloutState::Done);
    }

    #[test]
    fn a_release_in_whose_place_another_came_says_so() {
        let mut cluster = Cluster::of(1);
        cluster.up(&version(1));
        cluster.up(&version(2));
        assert_eq!(outcome(&cluster, 1).unwrap().state, RolloutState::Superseded);
        cluster.ask(&Request::Restart(Vec::new()));
        assert_eq!(outcome(&cluster, 2).unwrap().state, RolloutState::Superseded);
        cluster.settle();
        assert_eq!(outcome(&cluster, 2).unwrap().state, RolloutState::Superseded, "it is said once");
    }

    #[test]
    fn one_goes_back_to_the_last_that_was_done_and_is_another() {
        let mut cluster = Cluster::of(1);
        cluster.scripts.insert("web:3".into(), Script::Refuse);
        cluster.up(&version(1));
        cluster.settle();
        assert_eq!(target(&cluster), None);
        for number in 2..=3 {
            cluster.up(&version(number));
            cluster.settle();
        }
        assert_eq!(cluster.rollout().state, RolloutState::RolledBack);
        assert_eq!(target(&cluster), Some(1), "neither the one that failed nor the present one");
        // Under way: the one before it.
        cluster.up(&version(4));
        assert_eq!(target(&cluster), Some(2));
        cluster.settle();
        // Back at the first: what it was is no way back, however it is numbered.
        cluster.up(&version(1));
        cluster.settle();
        assert_eq!(target(&cluster), Some(4));
    }

    #[test]
    fn a_release_that_is_made_again_has_its_images_and_the_tasks_somebody_set_since() {
        let mut cluster = Cluster::of(1);
        cluster.up(&version(1));
        cluster.settle();
        cluster.up(&version(2));
        cluster.settle();
        let first =
            |cluster: &Cluster| Release::clone(cluster.world.release(&app_key(), ReleaseNumber(1)).unwrap());
        assert_eq!(returned(&cluster.world, &first(&cluster)), version(1));
        cluster.ask(&Request::Scale(BTreeMap::from([("web".parse().unwrap(), 3)])));
        cluster.settle();
        let spec = returned(&cluster.world, &first(&cluster));
        assert_eq!(spec.services[&key("web").name].mode, Mode::Replicated { replicas: 3 });

        let note = ReleaseNote { rollback_of: Some(ReleaseNumber(1)), ..ReleaseNote::default() };
        let images = first(&cluster).images;
        let changes =
            crate::noted_release(&cluster.world, &app_key(), &spec, &images, &by(), &note, cluster.now)
                .unwrap();
        cluster.apply(&changes);
        assert_eq!(cluster.rollout().what, "release 3 (back to 1)");
        cluster.settle();
        assert_eq!(cluster.ready("web").len(), 3);
        let third = cluster.world.release(&app_key(), ReleaseNumber(3)).unwrap();
        assert_eq!((&third.images, third.note.rollback_of), (&images, Some(ReleaseNumber(1))));
        // The number is no file's: it stays over the next return as well.
        let second = cluster.world.release(&app_key(), ReleaseNumber(2)).unwrap();
        let spec = returned(&cluster.world, second);
        assert_eq!(spec.services[&key("web").name].mode, Mode::Replicated { replicas: 3 });
    }

    #[test]
    fn a_return_is_planned_as_it_goes_past_every_step_and_to_what_is_kept() {
        let blue = |number| {
            let mut spec = version(number);
            let release = r#"{ "strategy": "blue-green", "promote": "manual", "keep": 600000 }"#;
            let web = spec.services.values_mut().next().unwrap();
            web.policy.release = Some(serde_json::from_str(release).unwrap());
            spec
        };
        let mut cluster = Cluster::of(1);
        cluster.up(&blue(1));
        cluster.settle();
        cluster.up(&blue(2));
        let back = |cluster: &Cluster| {
            plan_return(&cluster.world, &app_key(), &blue(1), &images(&blue(1))).to_string()
        };
        assert!(back(&cluster).contains("all requests go there once all are ready"), "{}", back(&cluster));
        assert!(!back(&cluster).contains("promotes"), "{}", back(&cluster));
        // It is promoted, and takes over.
        let mut app = AppRecord::clone(cluster.world.app(&app_key()).unwrap());
        let asked = wharf_model::Asked { by: by(), at: cluster.now, reason: String::new() };
        app.rollout.promoted = Some(wharf_model::Promotion { asked, whole: true });
        cluster.world.insert_app(app);
        cluster.settle_for(std::time::Duration::from_secs(60), &mut |_| {});
        assert_eq!(cluster.rollout().state, RolloutState::Done);
        assert!(back(&cluster).contains("take over again at once"), "{}", back(&cluster));
        cluster.settle();
        assert!(!back(&cluster).contains("take over again at once"), "they are gone: {}", back(&cluster));
    }

    #[test]
    fn a_release_whose_configs_a_container_mounts_is_kept() {
        let mut cluster = Cluster::of(1);
        cluster.up(&version(1));
        cluster.settle();
        let template = Release::clone(cluster.world.release(&app_key(), ReleaseNumber(1)).unwrap());
        for number in 2..=60 {
            cluster.world.insert_release(Release { number: ReleaseNumber(number), ..template.clone() });
        }
        let mut record = AppRecord::clone(cluster.world.app(&app_key()).unwrap());
        record.release = ReleaseNumber(60);
        cluster.world.insert_app(record.clone());
        let gone = |cluster: &Cluster, record: &AppRecord| forgotten(&cluster.world, record).len();
        assert_eq!(gone(&cluster, &record), 10);
        let revision = cluster.world.revisions_of(&key("web")).next().unwrap();
        let mut revision = ServiceRevision::clone(revision);
        revision.spec.secrets =
            serde_json::from_value(serde_json::json!([{ "source": "key", "target": "/key" }])).unwrap();
        cluster.world.insert_revision(revision);
        assert_eq!(gone(&cluster, &record), 9);
        assert!(!forgotten(&cluster.world, &record).contains(&ReleaseNumber(1)));
    }

    #[test]
    fn two_releases_are_compared_by_key_and_without_a_value() {
        let release = |number: u64, spec: AppSpec| Release {
            app: app_key(),
            number: ReleaseNumber(number),
            images: images(&spec),
            spec,
            by: by(),
            created_at: Timestamp(0),
            note: ReleaseNote::default(),
            outcome: None,
            from: None,
        };
        let policy = |text: &str| -> ServicePolicy { serde_json::from_str(text).unwrap() };
        let mut before = service("web");
        before.container.environment.insert("TOKEN".into(), Some("s3cret".into()));
        before.policy = policy(
            r#"{ "routes": [{ "hosts": ["a.example.com"], "path": "/api", "port": 80, "protocol": "http" }, { "port": 53, "listen": 53, "protocol": "udp" }] }"#,
        );
        let mut after = before.clone();
        after.image = "web:2".into();
        after.container.environment.insert("TOKEN".into(), Some("hunter2".into()));
        after.container.environment.insert("LEVEL".into(), Some("info".into()));
        after.mode = Mode::Replicated { replicas: 3 };
        after.policy = policy(
            r#"{ "routes": [{ "hosts": ["a.example.com"], "path": "/api", "port": 81, "protocol": "http" }, { "port": 80, "protocol": "http" }],
                 "release": { "strategy": "canary", "steps": [], "judge": { "errors_permille": 10, "latency_percent": 150, "requests": 100 }, "promote": "auto" } }"#,
        );
        let secret = |version: u64| FileSpec {
            external: true,
            version: Some(version),
            digest: Some(format!("d{version}")),
            ..serde_json::from_str("{}").unwrap()
        };
        let mut first = app(&[("web", before), ("old", service("old"))]);
        first.secrets.insert("key".into(), secret(1));
        let mut second = app(&[("web", after), ("db", service("db"))]);
        second.secrets.insert("key".into(), secret(2));
        let (first, second) = (release(1, first), release(2, second));
        let text: Vec<_> = compare(Some(&first), &second).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r"
        ~ secret   key: version 1 -> 2
        + service  db: image db:1, 1 task
        ± service  web: image web:1 -> web:2, environment LEVEL added, environment TOKEN changed, strategy rolling -> canary, 1 -> 3 tasks
        - service  old
        ~ route    http://a.example.com/api -> web:81: it led to web:80
        + route    http://*/ -> web:80
        - route    udp://*:53 -> web:53
        ");
        assert!(!text.concat().contains("hunter2") && !text.concat().contains("s3cret"));
        assert_eq!(compare(Some(&first), &first), []);
        let all: Vec<_> = compare(None, &first).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        + network  default
        + secret   key
        + service  old: image old:1, 1 task
        + service  web: image web:1, 1 task
        + route    http://a.example.com/api -> web:80
        + route    udp://*:53 -> web:53
        ");
        assert_eq!(strategies(&second.spec), "canary (web), rolling");
        assert_eq!(strategies(&first.spec), "rolling");
    }
}
