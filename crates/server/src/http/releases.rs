//! Releases: what each of them is, how it ended, and what it changed.

use axum::{Extension, extract::State};
use serde::Deserialize;
use wharf_api::{transport::Peer, v1};
use wharf_engine as engine;
use wharf_model::{AppKey, AppRecord, AppSpec, FileSpec, GitSource, Release, ReleaseNote, ReleaseNumber};

use super::{
    Shared, apps,
    extract::{Json, Path, Query},
    failure::{Answer, Failure},
    require_user, views,
};
use crate::state::Inner;

/// The longest that is remembered of what somebody says of a release, in characters.
const LONGEST_MESSAGE: usize = 2000;
/// The longest name of a commit or branch, in characters.
const LONGEST_NAME: usize = 250;

/// What a release's maker says of it, if it can be remembered.
pub(super) fn note(message: Option<String>, source: Option<v1::GitSource>) -> Answer<ReleaseNote> {
    let message = message.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let readable = |text: &str, longest: usize| {
        text.chars().count() <= longest && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t')
    };
    if !message.as_deref().is_none_or(|text| readable(text, LONGEST_MESSAGE)) {
        return Err(Failure::invalid(format!(
            "a release's message has at most {LONGEST_MESSAGE} characters, and none that cannot be printed"
        )));
    }
    let name =
        |text: &str| !text.is_empty() && readable(text, LONGEST_NAME) && !text.contains(char::is_whitespace);
    if let Some(source) = &source
        && !(name(&source.commit) && source.branch.as_deref().is_none_or(name))
    {
        return Err(Failure::invalid(format!(
            "the names of a commit and a branch have 1 to {LONGEST_NAME} characters and no space"
        )));
    }
    let source =
        source.map(|source| GitSource { commit: source.commit, branch: source.branch, dirty: source.dirty });
    Ok(ReleaseNote { message, source, rollback_of: None })
}

/// The release of this number.
pub(super) fn find<'a>(inner: &'a Inner, key: &AppKey, number: u64) -> Answer<&'a Release> {
    let found = inner.world.release(key, ReleaseNumber(number));
    found.map(|release| &**release).ok_or_else(|| {
        let kept: Vec<_> = inner.world.releases_of(key).map(|release| release.number.0).collect();
        let which = match (kept.first(), kept.last()) {
            (Some(first), Some(last)) if first < last => format!(", from {first} to {last}"),
            _ => String::new(),
        };
        Failure::not_found(format!("app {} has no release {number}", key.name))
            .hint(format!("`wharf app history {}` lists those that are kept{which}", key.name))
    })
}

/// How much history is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ReleasesOf {
    limit: Option<usize>,
}

/// The releases of an app, newest first.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/releases", params(("environment" = String, Path), ("app" = String, Path), ("limit" = Option<usize>, Query)),
    responses((status = 200, body = [v1::Release])))]
pub(super) async fn list(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app)): Path<(String, String)>,
    Query(wish): Query<ReleasesOf>,
) -> Answer<Json<Vec<v1::Release>>> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let inner = shared.state.read();
    let app = apps::find(&inner, &key)?;
    let mut releases: Vec<_> = inner.world.releases_of(&key).collect();
    releases.reverse();
    releases.truncate(wish.limit.unwrap_or(usize::MAX));
    Ok(Json(releases.into_iter().map(|release| view(&inner, app, release, false)).collect()))
}

/// One release, whole.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/releases/{number}", params(("environment" = String, Path), ("app" = String, Path), ("number" = u64, Path)),
    responses((status = 200, body = v1::Release), (status = 404, body = v1::Problem)))]
pub(super) async fn get(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, number)): Path<(String, String, u64)>,
) -> Answer<Json<v1::Release>> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let inner = shared.state.read();
    let app = apps::find(&inner, &key)?;
    Ok(Json(view(&inner, app, find(&inner, &key, number)?, true)))
}

/// What differs between two releases, by key and without values.
#[utoipa::path(get, path = "/v1/apps/{environment}/{app}/releases/{number}/diff/{other}",
    params(("environment" = String, Path), ("app" = String, Path), ("number" = u64, Path), ("other" = u64, Path)),
    responses((status = 200, body = v1::ReleaseDiff), (status = 404, body = v1::Problem)))]
pub(super) async fn diff(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Path((environment, app, number, other)): Path<(String, String, u64, u64)>,
) -> Answer<Json<v1::ReleaseDiff>> {
    require_user(&peer)?;
    let key = apps::key(&environment, &app)?;
    let inner = shared.state.read();
    apps::find(&inner, &key)?;
    let (from, to) = (find(&inner, &key, number)?, find(&inner, &key, other)?);
    let operations = engine::compare(Some(from), to).into_iter().map(views::operation).collect();
    Ok(Json(v1::ReleaseDiff { from: from.number.0, to: to.number.0, operations }))
}

/// A release; the specification only where it is asked for.
fn view(inner: &Inner, app: &AppRecord, release: &Release, with_spec: bool) -> v1::Release {
    let rollout = &app.rollout;
    let (state, reason, ended_at) = match &release.outcome {
        Some(outcome) => (views::state_name(outcome.state), outcome.reason.clone(), Some(outcome.ended_at.0)),
        None if rollout.release == Some(release.number) => {
            (views::state_name(rollout.state), rollout.reason.clone(), rollout.ended_at.map(|at| at.0))
        }
        None => Default::default(),
    };
    let before = release.from.map(|from| inner.world.release(&release.app, from));
    let changes = match before {
        None => Some(engine::compare(None, release)),
        Some(kept) => kept.map(|before| engine::compare(Some(before), release)),
    };
    let images = release.images.iter().map(|(service, image)| {
        let pin = views::pin(image).map(|pin| format!("@{pin}")).unwrap_or_default();
        (service.to_string(), format!("{}{pin}", image.reference))
    });
    let note = release.note.clone();
    v1::Release {
        number: release.number.0,
        created_at: release.created_at.0,
        by: release.by.to_string(),
        images: images.collect(),
        current: release.number == app.release,
        state,
        reason,
        ended_at,
        strategy: engine::strategies(&release.spec),
        message: note.message,
        source: note.source.map(|source| v1::GitSource {
            commit: source.commit,
            branch: source.branch,
            dirty: source.dirty,
        }),
        rollback_of: note.rollback_of.map(|number| number.0),
        from: release.from.map(|number| number.0),
        files: files(&release.spec),
        changes: changes.map(|changes| changes.into_iter().map(views::operation).collect()),
        spec: with_spec.then(|| Box::new(release.spec.clone())),
    }
}

fn files(spec: &AppSpec) -> Vec<v1::ReleaseFile> {
    let file = |kind: &str, name: &String, file: &FileSpec| v1::ReleaseFile {
        kind: kind.into(),
        name: name.clone(),
        version: file.version,
        digest: file.digest.clone(),
    };
    let configs = spec.configs.iter().map(|(name, found)| file("config", name, found));
    configs.chain(spec.secrets.iter().map(|(name, found)| file("secret", name, found))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_release_can_be_read_on_a_terminal() {
        let source = |commit: &str, branch: Option<&str>| {
            Some(v1::GitSource { commit: commit.into(), branch: branch.map(Into::into), dirty: None })
        };
        let kept = note(Some("  the new basket\n".into()), source("0a1b2c3", Some("main"))).unwrap();
        assert_eq!(kept.message.as_deref(), Some("the new basket"));
        assert_eq!(kept.source.unwrap().branch.as_deref(), Some("main"));
        assert_eq!(note(Some(" ".into()), None).unwrap(), ReleaseNote::default());
        for (message, source) in [
            (Some("\u{1b}[2J".to_owned()), None),
            (Some("x".repeat(LONGEST_MESSAGE + 1)), None),
            (None, source("", None)),
            (None, source("a b", None)),
            (None, source("0a1b2c3", Some(""))),
        ] {
            assert_eq!(note(message, source).unwrap_err().0.code, v1::Code::Invalid);
        }
    }
}
