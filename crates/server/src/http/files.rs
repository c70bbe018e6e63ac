//! Configs and secrets of environments: made, replaced by newer versions, seen, removed; and what an app's `external` ones stand for.
//!
//! - A content is stored sealed. That of a secret leaves a server only with the assignments of tasks that mount it.
//! - An app takes the newest version when it is planned, and keeps a copy of it with its release: neither a newer version nor the end
//!   of it changes what runs.
//! - What an app's current release has is not removed. A release that begins to use one writes its record, so that of a removal and a
//!   release at once the second sees the first.

use axum::{Extension, extract::State, http::StatusCode};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rand::Rng as _;
use serde::Deserialize;
use wharf_api::{
    transport::Peer,
    v1::{self, Code},
};
use wharf_model::{AppKey, AppSpec, By, EnvironmentName, EventKind, FileSpec, Release, Subject};
use wharf_store::Batch;

use super::{
    Shared, apps, closest,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user,
};
use crate::{
    records::{FileKind, FileVersion, Key, NamedFileKey, NamedFileRecord, encode},
    state::Inner,
};

/// How many versions are remembered.
const VERSIONS_KEPT: usize = 10;
/// How long all labels may be together, and the client's name of itself: with the largest content they still fit into one write of
/// every store.
const LONGEST_WORDS: usize = 4 << 10;
/// How much of who made a version is remembered with it, in characters.
const LONGEST_BY: usize = 100;
/// How often a change is decided anew because somebody was faster.
const ATTEMPTS: usize = 20;

/// Of how many versions the content is kept. Nothing can read an older one of a secret: releases have copies of what they pin.
const fn contents_kept(kind: FileKind) -> usize {
    match kind {
        FileKind::Config => VERSIONS_KEPT,
        FileKind::Secret => 1,
    }
}

/// The verb that concerns a kind, for hints.
const fn verb(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Config => "wharf configs",
        FileKind::Secret => "wharf secret",
    }
}

/// Of which environment.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FilesOf {
    environment: Option<String>,
}

/// Which version's content is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ContentOf {
    version: Option<u64>,
}

/// The configs of an environment, or of all.
#[utoipa::path(get, path = "/v1/configs", params(("environment" = Option<String>, Query)), responses((status = 200, body = [v1::NamedFile])))]
pub(super) async fn configs(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<FilesOf>,
) -> Answer<Json<Vec<v1::NamedFile>>> {
    require_user(&peer)?;
    Ok(Json(list(&shared, FileKind::Config, &wish)))
}

/// The secrets of an environment, or of all, without their contents.
#[utoipa::path(get, path = "/v1/secrets", params(("environment" = Option<String>, Query)), responses((status = 200, body = [v1::NamedFile])))]
pub(super) async fn secrets(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Query(wish): Query<FilesOf>,
) -> Answer<Json<Vec<v1::NamedFile>>> {
    require_user(&peer)?;
    Ok(Json(list(&shared, FileKind::Secret, &wish)))
}

/// A config with its content: that of the newest version unless another is asked for.
#[utoipa::path(get, path = "/v1/configs/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path), ("version" = Option<u64>, Query)),
    responses((status = 200, body = v1::NamedFile), (status = 404, body = v1::Problem)))]
pub(super) async fn config(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
    Query(wish): Query<ContentOf>,
) -> Answer<Json<v1::NamedFile>> {
    require_user(&peer)?;
    let key = key(FileKind::Config, &environment, &name)?;
    let inner = shared.state.read();
    let record = find(&inner, &key)?;
    let version = wish.version.unwrap_or_else(|| newest(record).number);
    let content = open(&shared, &inner, &key, version)?.ok_or_else(|| {
        let kept = record.versions.iter().map(|version| version.number.to_string());
        Failure::not_found(format!("config {name} has no version {version}"))
            .hint(format!("these are kept: {}", kept.collect::<Vec<_>>().join(", ")))
    })?;
    Ok(Json(v1::NamedFile { content: Some(BASE64.encode(content)), ..view(&inner, record) }))
}

/// A secret, without its content: that is handed to the tasks that mount it and to nobody else.
#[utoipa::path(get, path = "/v1/secrets/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = v1::NamedFile), (status = 404, body = v1::Problem)))]
pub(super) async fn secret(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
) -> Answer<Json<v1::NamedFile>> {
    require_user(&peer)?;
    let key = key(FileKind::Secret, &environment, &name)?;
    let inner = shared.state.read();
    Ok(Json(view(&inner, find(&inner, &key)?)))
}

/// Makes a config, or a new version of one.
#[utoipa::path(post, path = "/v1/configs/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path)),
    request_body = v1::FileCreate, responses((status = 200, body = v1::FileCreated), (status = 409, body = v1::Problem)))]
pub(super) async fn create_config(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
    Json(wish): Json<v1::FileCreate>,
) -> Answer<Json<v1::FileCreated>> {
    let by = require_user(&peer)?;
    create(&shared, key(FileKind::Config, &environment, &name)?, wish, by).await.map(Json)
}

/// Makes a secret, or a new version of one.
#[utoipa::path(post, path = "/v1/secrets/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path)),
    request_body = v1::FileCreate, responses((status = 200, body = v1::FileCreated), (status = 409, body = v1::Problem)))]
pub(super) async fn create_secret(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
    Json(wish): Json<v1::FileCreate>,
) -> Answer<Json<v1::FileCreated>> {
    let by = require_user(&peer)?;
    create(&shared, key(FileKind::Secret, &environment, &name)?, wish, by).await.map(Json)
}

/// Removes a config that no app's current release has.
#[utoipa::path(delete, path = "/v1/configs/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = 409, body = v1::Problem)))]
pub(super) async fn remove_config(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let by = require_user(&peer)?;
    remove(&shared, &key(FileKind::Config, &environment, &name)?, &by).await
}

/// Removes a secret that no app's current release has.
#[utoipa::path(delete, path = "/v1/secrets/{environment}/{name}", params(("environment" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = 409, body = v1::Problem)))]
pub(super) async fn remove_secret(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, name)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let by = require_user(&peer)?;
    remove(&shared, &key(FileKind::Secret, &environment, &name)?, &by).await
}

fn key(kind: FileKind, environment: &str, name: &str) -> Answer<NamedFileKey> {
    let invalid = |error: wharf_model::InvalidName| Failure::invalid(error.to_string());
    Ok(NamedFileKey {
        kind,
        environment: environment.parse().map_err(invalid)?,
        name: name.parse().map_err(invalid)?,
    })
}

fn list(shared: &Shared, kind: FileKind, wish: &FilesOf) -> Vec<v1::NamedFile> {
    let inner = shared.state.read();
    let wanted = |key: &NamedFileKey| {
        key.kind == kind && wish.environment.as_ref().is_none_or(|wanted| key.environment.as_str() == wanted)
    };
    inner.named.values().filter(|record| wanted(&record.key)).map(|record| view(&inner, record)).collect()
}

fn find<'a>(inner: &'a Inner, key: &NamedFileKey) -> Answer<&'a NamedFileRecord> {
    inner.named.get(key).ok_or_else(|| {
        let NamedFileKey { kind, environment, name } = key;
        let elsewhere = inner.named.keys().find(|other| (other.kind, &other.name) == (*kind, name));
        let hint = match (elsewhere, similar(inner, *kind, environment, name.as_str())) {
            (Some(other), _) => {
                format!("there is one in environment `{}`: give `--env {0}`", other.environment)
            }
            (None, Some(close)) => format!("did you mean `{close}`? `{} ls` lists them", verb(*kind)),
            (None, None) => {
                format!("`{0} create {name} FILE` makes it; `{0} ls` lists those there are", verb(*kind))
            }
        };
        Failure::not_found(format!("there is no {kind} `{name}` in environment `{environment}`")).hint(hint)
    })
}

/// The name that was probably meant.
fn similar(inner: &Inner, kind: FileKind, environment: &EnvironmentName, name: &str) -> Option<String> {
    let here = inner.named.keys().filter(|key| (key.kind, &key.environment) == (kind, environment));
    let names: Vec<_> = here.map(|key| key.name.to_string()).collect();
    closest(name, &names).map(str::to_owned)
}

/// The newest version of a record; there always is one.
fn newest(record: &NamedFileRecord) -> FileVersion {
    record.versions.last().cloned().unwrap_or_else(|| FileVersion {
        number: 0,
        digest: String::new(),
        size: 0,
        created_at: record.created_at,
        by: String::new(),
    })
}

/// The content of a version, if it is kept.
fn open(shared: &Shared, inner: &Inner, key: &NamedFileKey, version: u64) -> Answer<Option<Vec<u8>>> {
    let Some(sealed) = inner.named_content(key, version) else { return Ok(None) };
    let place = Key::NamedContent(key.clone(), version).to_string();
    let content = shared.state.seal().open(&place, &sealed);
    content.map(Some).map_err(|error| Failure::internal("a sealed content does not open", &error))
}

fn view(inner: &Inner, record: &NamedFileRecord) -> v1::NamedFile {
    let newest = newest(record);
    let versions = record.versions.iter().rev().map(|version| v1::FileVersion {
        number: version.number,
        size: version.size,
        created_at: version.created_at.0,
        by: version.by.clone(),
    });
    v1::NamedFile {
        kind: record.key.kind.to_string(),
        environment: record.key.environment.to_string(),
        name: record.key.name.to_string(),
        version: newest.number,
        size: newest.size,
        labels: record.labels.clone(),
        created_at: record.created_at.0,
        updated_at: newest.created_at.0,
        used_by: uses(inner, &record.key),
        versions: versions.collect(),
        content: None,
    }
}

/// The apps whose current release has this.
fn uses(inner: &Inner, key: &NamedFileKey) -> Vec<v1::FileUse> {
    let apps = inner.world.apps().filter(|app| app.key.environment == key.environment && !app.removed);
    let releases = apps.filter_map(|app| inner.world.release(&app.key, app.release));
    releases.filter_map(|release| use_of(release, key)).collect()
}

fn use_of(release: &Release, key: &NamedFileKey) -> Option<v1::FileUse> {
    let mut of_kind =
        externals(&release.spec).filter(|(kind, name, _)| *kind == key.kind && *name == key.name.as_str());
    let (_, _, file) = of_kind.next()?;
    Some(v1::FileUse { app: release.app.name.to_string(), version: file.version.unwrap_or_default() })
}

/// The external configs and secrets of an app: kind, name in the environment, and what is said of it.
fn externals(spec: &AppSpec) -> impl Iterator<Item = (FileKind, &str, &FileSpec)> {
    let configs = spec.configs.iter().map(|(key, file)| (FileKind::Config, key, file));
    let secrets = spec.secrets.iter().map(|(key, file)| (FileKind::Secret, key, file));
    let external = configs.chain(secrets).filter(|(_, _, file)| file.external);
    external.map(|(kind, key, file)| (kind, file.name.as_deref().unwrap_or(key), file))
}

async fn create(shared: &Shared, key: NamedFileKey, wish: v1::FileCreate, by: By) -> Answer<v1::FileCreated> {
    let content = apps::content(key.name.as_str(), &wish.content)?;
    let words =
        wish.labels.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() + wish.client.len();
    if words > LONGEST_WORDS {
        return Err(Failure::invalid(format!(
            "the labels of {} {} are longer than {} KiB",
            key.kind,
            key.name,
            LONGEST_WORDS >> 10
        )));
    }
    let by = By { client: wish.client.clone(), ..by };
    let decide = |inner: &Inner| {
        let (batch, created) = created(shared, inner, &key, &wish, &content, &by)?;
        Ok((created, Some(batch).filter(|batch| !batch.writes().is_empty())))
    };
    shared.change(ATTEMPTS, decide).await
}

/// What to write so that there is a version with this content.
fn created(
    shared: &Shared,
    inner: &Inner,
    key: &NamedFileKey,
    wish: &v1::FileCreate,
    content: &[u8],
    by: &By,
) -> Answer<(Batch, v1::FileCreated)> {
    let NamedFileKey { kind, environment, name } = key;
    let before = inner.named.get(key);
    if before.is_some() && !wish.replace {
        return Err(Failure::new(
            Code::Conflict,
            format!("there is a {kind} `{name}` in environment `{environment}` already"),
        )
        .hint("`--replace` makes a new version of it, which apps take with their next `wharf up`"));
    }
    let now = shared.now();
    let digest = shared.state.seal().digest(content);
    let mut record = before.cloned().unwrap_or_else(|| NamedFileRecord {
        key: key.clone(),
        labels: Default::default(),
        created_at: now,
        versions: Vec::new(),
    });
    let labelled = !wish.labels.is_empty() && record.labels != wish.labels;
    if labelled {
        record.labels = wish.labels.clone();
    }
    let last = record.versions.last().map_or(0, |version| version.number);
    let changed = record.versions.last().is_none_or(|version| version.digest != digest);
    let number = if changed { last + 1 } else { last };
    let behind = uses(inner, key).into_iter().filter(|used| used.version < number).collect();
    let answer = v1::FileCreated { version: number, changed, behind };
    if !changed && !labelled {
        return Ok((Batch::new(), answer));
    }
    let place = Key::NamedFile(key.clone());
    let mut batch = inner.expecting(Batch::new(), &place);
    if changed {
        let size = content.len() as u64;
        let by = by.to_string().chars().take(LONGEST_BY).collect();
        record.versions.push(FileVersion { number, digest, size, created_at: now, by });
        let content_place = Key::NamedContent(key.clone(), number);
        let mut nonce = [0; 12];
        rand::rng().fill_bytes(&mut nonce);
        let sealed = shared.state.seal().seal(&content_place.to_string(), content, nonce);
        batch = batch.put(content_place.to_string(), sealed);
        let versions = record.versions.iter().rev().skip(contents_kept(*kind));
        let old = versions.map(|version| Key::NamedContent(key.clone(), version.number));
        let old = old.filter(|place| inner.revision_of(place).is_some());
        batch = old.fold(batch, |batch, place| batch.delete(place.to_string()));
        record.versions.drain(..record.versions.len().saturating_sub(VERSIONS_KEPT));
    }
    batch = batch.put(place.to_string(), encode(&place, &record));
    let message = match (before.is_some(), changed) {
        (false, _) => format!("{kind} {name} of {environment} was made"),
        (true, true) => format!("{kind} {name} of {environment} has version {number}"),
        (true, false) => format!("{kind} {name} of {environment} has other labels"),
    };
    Ok((shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(by.clone())), answer))
}

async fn remove(shared: &Shared, key: &NamedFileKey, by: &By) -> Answer<StatusCode> {
    // A release may begin to use it meanwhile, or somebody make a new version.
    let decide = |inner: &Inner| Ok(((), Some(removal(shared, inner, key, by)?)));
    shared.change(ATTEMPTS, decide).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn removal(shared: &Shared, inner: &Inner, key: &NamedFileKey, by: &By) -> Answer<Batch> {
    let NamedFileKey { kind, environment, name } = key;
    let record = find(inner, key)?;
    let users: Vec<_> = uses(inner, key).into_iter().map(|used| used.app).collect();
    if !users.is_empty() {
        let (apps, them) = if users.len() == 1 { ("app", "it") } else { ("apps", "them") };
        return Err(Failure::new(
            Code::Conflict,
            format!("{kind} {name} of {environment} is used by {apps} {}", users.join(", ")),
        )
        .hint(format!("take it out of their Compose files and `wharf up`, or `wharf down` {them}, first")));
    }
    let place = Key::NamedFile(key.clone());
    let contents = record.versions.iter().map(|version| Key::NamedContent(key.clone(), version.number));
    let contents = contents.filter(|place| inner.revision_of(place).is_some());
    let batch = inner.expecting(Batch::new(), &place).delete(place.to_string());
    let batch = contents.fold(batch, |batch, place| batch.delete(place.to_string()));
    let message = format!("{kind} {name} of {environment} was removed");
    Ok(shared.with_event(batch, EventKind::Server, Subject::default(), message, Some(by.clone())))
}

/// What the external configs and secrets of an app stand for now.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Which, by the digest that names the content.
    pins: std::collections::BTreeMap<String, (NamedFileKey, u64)>,
    /// Those there are not.
    pub(super) missing: Vec<v1::Refusal>,
}

impl Pins {
    /// Pins every external config and secret of `spec` to its newest version. Whatever it was pinned to before does not count.
    pub(super) fn pin(inner: &Inner, app: &AppKey, spec: &mut AppSpec) -> Self {
        let mut pins = Self::default();
        let configs = spec.configs.iter_mut().map(|(key, file)| (FileKind::Config, key, file));
        let secrets = spec.secrets.iter_mut().map(|(key, file)| (FileKind::Secret, key, file));
        for (kind, key, file) in configs.chain(secrets).filter(|(_, _, file)| file.external) {
            (file.content, file.digest, file.version) = (None, None, None);
            let name = file.name.as_ref().unwrap_or(key);
            let found = name.parse().ok().and_then(|name| {
                inner.named.get(&NamedFileKey { kind, environment: app.environment.clone(), name })
            });
            let Some(record) = found else {
                pins.missing.push(not_there(inner, kind, app, key, name));
                continue;
            };
            let version = newest(record);
            file.digest = Some(version.digest.clone());
            file.version = Some(version.number);
            pins.pins.insert(version.digest, (record.key.clone(), version.number));
        }
        pins
    }

    /// Leaves every config and secret of `spec` pinned to what a release had, whose copies are kept with it. What is external and still
    /// there is held as if it were new.
    pub(super) fn keep(inner: &Inner, app: &AppKey, spec: &AppSpec) -> Self {
        let mut pins = Self::default();
        for (kind, name, file) in externals(spec) {
            let found = name.parse().ok().and_then(|name| {
                inner.named.get(&NamedFileKey { kind, environment: app.environment.clone(), name })
            });
            if let (Some(record), Some(digest)) = (found, &file.digest) {
                let version = file.version.unwrap_or_default();
                pins.pins.insert(digest.clone(), (record.key.clone(), version));
            }
        }
        let configs = spec.configs.iter().map(|(key, file)| (FileKind::Config, key, file));
        let secrets = spec.secrets.iter().map(|(key, file)| (FileKind::Secret, key, file));
        for (kind, key, file) in configs.chain(secrets) {
            let place = file.digest.as_ref().map(|digest| Key::File(app.clone(), digest.clone()));
            if place.is_none_or(|place| inner.revision_of(&place).is_none()) {
                pins.missing.push(v1::Refusal {
                    message: format!("the content that {kind} `{key}` had then is no longer kept"),
                    hint: Some("choose a later release, or deploy the Compose file with `wharf up`".into()),
                });
            }
        }
        pins
    }

    /// The content that a digest names.
    pub(super) fn content(&self, shared: &Shared, inner: &Inner, digest: &str) -> Answer<Option<Vec<u8>>> {
        let Some((key, version)) = self.pins.get(digest) else { return Ok(None) };
        open(shared, inner, key, *version)
    }

    /// Makes a release of `app` depend on what it pins: none of it may be replaced or removed meanwhile.
    pub(super) fn hold(&self, inner: &Inner, app: &AppKey, mut batch: Batch) -> Batch {
        let current = inner.world.app(app).and_then(|record| inner.world.release(app, record.release));
        for (key, _) in self.pins.values() {
            let place = Key::NamedFile(key.clone());
            batch = inner.expecting(batch, &place);
            let known = current.is_some_and(|release| use_of(release, key).is_some());
            if let (false, Some(record)) = (known, inner.named.get(key)) {
                batch = batch.put(place.to_string(), encode(&place, record));
            }
        }
        batch
    }
}

/// The external configs and secrets of a release that its environment has no longer, or not as they were then.
pub(super) fn gone(inner: &Inner, app: &AppKey, spec: &AppSpec) -> Vec<String> {
    let gone = externals(spec).filter_map(|(kind, name, file)| {
        let key = name.parse().ok().map(|name| NamedFileKey { kind, environment: app.environment.clone(), name });
        let record = key.and_then(|key| inner.named.get(&key));
        record.is_none().then(|| {
            let version = file.version.map(|version| format!(" {version}")).unwrap_or_default();
            format!(
                "{kind} {name} is gone from {}: the release's own copy of version{version} is used, and the next `wharf up` needs a new one",
                app.environment
            )
        })
    });
    gone.collect()
}

fn not_there(inner: &Inner, kind: FileKind, app: &AppKey, key: &str, name: &str) -> v1::Refusal {
    let environment = &app.environment;
    let called = if key == name { String::new() } else { format!(" `{name}`") };
    let none = if key == name { "of that name" } else { "of the name" };
    let message =
        format!("{kind} `{key}` is external, and environment `{environment}` has no {kind} {none}{called}");
    let make = format!("`{} create {name} FILE --env {environment}`", verb(kind));
    let hint = match (name.parse::<wharf_model::FileName>(), similar(inner, kind, environment, name)) {
        (Err(error), _) => format!("{error}; `name:` beside `external:` says which one is meant"),
        (Ok(_), Some(close)) => format!("did you mean `{close}`? Otherwise make it: {make}"),
        (Ok(_), None) => format!("make it: {make}"),
    };
    v1::Refusal { message, hint: Some(hint) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_begins_to_use_a_secret_writes_it_so_that_a_removal_at_once_sees_it() {
        let app = AppKey { environment: "prod".parse().unwrap(), name: "shop".parse().unwrap() };
        let named = key(FileKind::Secret, "prod", "password").unwrap();
        let version = FileVersion {
            number: 3,
            digest: "d".into(),
            size: 1,
            created_at: wharf_model::Timestamp(0),
            by: "ada".into(),
        };
        let record = NamedFileRecord {
            key: named.clone(),
            labels: Default::default(),
            created_at: version.created_at,
            versions: vec![version],
        };
        let mut inner = Inner::default();
        inner.named.insert(named.clone(), record);
        let spec = r#"{ "name": "shop", "services": {}, "secrets": { "password": { "external": true } } }"#;
        let mut spec: AppSpec = serde_json::from_str(spec).unwrap();
        let pins = Pins::pin(&inner, &app, &mut spec);
        let place = Key::NamedFile(named.clone()).to_string();
        let batch = pins.hold(&inner, &app, Batch::new());
        assert!(batch.writes().contains_key(&place));
        assert_eq!(batch.expectations(), [(place, None)]);
        assert!(uses(&inner, &named).is_empty());
    }
}
