//! How a build is asked of the engine: by which builder, and in which words.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body_util::BodyExt;
use wharf_api::{
    transport::Body,
    v1::{BuildLine, BuildRequest, Builder, Code, Problem},
};

use super::{engine::Driven, trace::Ending, trace::Progress};
use crate::runtime::spec::ApiVersion;

/// From this version of the engine's API on, BuildKit takes the size of `/dev/shm` and limits.
const BUILDKIT_TAKES_LIMITS: ApiVersion = ApiVersion { major: 1, minor: 42 };

/// A builder of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chosen {
    Classic,
    Buildkit,
}
impl Chosen {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Buildkit => "buildkit",
        }
    }
}

/// The builder that can do what is asked for: BuildKit, unless only the classic one can, or does it better.
pub(super) fn choose(wish: &BuildRequest, api: ApiVersion) -> Result<Chosen, Problem> {
    let options = &wish.options;
    let secrets = (!options.secrets.is_empty()).then(|| "build secrets".to_owned());
    let inline = options.args.contains_key("BUILDKIT_INLINE_CACHE").then(|| "an inline cache".to_owned());
    let needs_buildkit = wish.needs_buildkit.clone().or(secrets).or(inline);
    let limits = if options.shm_size.is_some() { Some("`shm_size`") } else { None };
    let limits = limits.or((!options.ulimits.is_empty()).then_some("`ulimits`"));
    let needs_classic = limits.filter(|_| api < BUILDKIT_TAKES_LIMITS);
    let refused = |message: String, hint: &str| Err(Problem::new(Code::Invalid, message).hint(hint));
    match (needs_buildkit, needs_classic, wish.builder) {
        (Some(one), Some(other), _) => refused(
            format!(
                "the build uses {one}, which only BuildKit has, and {other}, which this engine's BuildKit does not have"
            ),
            "do without one of them, or update Docker Engine on the node to 23.0 or later",
        ),
        (Some(one), None, Builder::Classic) => refused(
            format!("the build uses {one}, which the classic builder does not have"),
            "leave out `--builder classic`",
        ),
        (None, Some(other), Builder::Buildkit) => refused(
            format!("the build uses {other}, which this engine's BuildKit does not have"),
            "leave out `--builder buildkit`, or update Docker Engine on the node to 23.0 or later",
        ),
        (Some(_), None, _) | (None, None, Builder::Buildkit) => Ok(Chosen::Buildkit),
        (None, Some(_), _) | (None, None, Builder::Classic) => Ok(Chosen::Classic),
        // The classic builder keeps a Dockerfile that is no part of the context out of `COPY . .`.
        (None, None, Builder::Auto) if wish.foreign_dockerfile => Ok(Chosen::Classic),
        (None, None, Builder::Auto) => Ok(Chosen::Buildkit),
    }
}

/// The request's path for the engine.
pub(super) fn path(wish: &BuildRequest, chosen: Chosen, api: ApiVersion, session: Option<&str>) -> String {
    let options = &wish.options;
    let mut query = Query(format!("/v{api}/build?rm=1&forcerm=1"));
    query.add(
        "version",
        match chosen {
            Chosen::Classic => "1",
            Chosen::Buildkit => "2",
        },
    );
    query.add("t", &wish.reference);
    options.tags.iter().for_each(|tag| query.add("t", tag));
    query.add("dockerfile", &wish.dockerfile);
    if let Some(remote) = &wish.remote {
        query.add("remote", remote);
    }
    if options.no_cache {
        query.add("nocache", "1");
    }
    if options.pull {
        query.add("pull", "1");
    }
    query.add_json("buildargs", &options.args, options.args.is_empty());
    query.add_json("labels", &options.labels, options.labels.is_empty());
    query.add_json("cachefrom", &options.cache_from, options.cache_from.is_empty());
    let limits: Vec<_> = options
        .ulimits
        .iter()
        .map(|(name, limit)| serde_json::json!({"Name": name, "Soft": limit.soft, "Hard": limit.hard}))
        .collect();
    query.add_json("ulimits", &limits, limits.is_empty());
    if let Some(network) = &options.network {
        query.add("networkmode", network);
    }
    if let Some(size) = options.shm_size {
        query.add("shmsize", &size.0.to_string());
    }
    options.extra_hosts.iter().for_each(|host| query.add("extrahosts", host));
    if let Some(target) = &options.target {
        query.add("target", target);
    }
    if let Some(platform) = &options.platform {
        query.add("platform", platform);
    }
    if let Some(session) = session {
        query.add("session", session);
    }
    query.0
}

/// A path whose query grows.
struct Query(String);
impl Query {
    fn add(&mut self, name: &str, value: &str) {
        self.0.push('&');
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                self.0.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    fn add_json(&mut self, name: &str, value: &impl serde::Serialize, is_empty: bool) {
        if !is_empty {
            self.add(name, &serde_json::to_string(value).unwrap_or_default());
        }
    }
}

/// The engine's answer, line by line; the last is how it ended.
pub(super) fn lines(answer: Driven) -> impl Stream<Item = BuildLine> + Send {
    let begun = (Some(answer), BytesMut::new(), Progress::default());
    let batches = futures::stream::unfold(begun, |(answer, mut buffer, mut progress)| async move {
        let mut answer = answer?;
        let mut lines = Vec::new();
        let broke = match answer.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    buffer.extend_from_slice(&data);
                }
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let message = buffer.split_to(end + 1);
                    lines.extend(progress.read(&message).into_iter().map(BuildLine::Output));
                }
                return Some((lines, (Some(answer), buffer, progress)));
            }
            Some(Err(error)) => Some(error.to_string()),
            None => None,
        };
        lines.extend(progress.read(&buffer).into_iter().map(BuildLine::Output));
        lines.push(ending(&progress, broke));
        Some((lines, (None, BytesMut::new(), progress)))
    });
    batches.flat_map(futures::stream::iter)
}

fn ending(progress: &Progress, broke: Option<String>) -> BuildLine {
    let failed = match progress.ending() {
        Ending::Built(id) => return BuildLine::Built { id },
        Ending::Failed(error) => error,
        Ending::CutOff => {
            let why = broke.unwrap_or_else(|| "it ended without a result".to_owned());
            return BuildLine::Failed(
                Problem::new(Code::Unavailable, format!("the engine broke the build off: {why}"))
                    .hint("see whether Docker Engine runs on the node: `systemctl status docker`"),
            );
        }
    };
    let message = match progress.step() {
        Some(step) if step.contains(&failed) => step,
        Some(step) if !failed.contains(&step) => format!("{step}: {failed}"),
        Some(_) | None => failed,
    };
    let problem = Problem::new(Code::Invalid, message);
    // Of a base image that the engine does not have, whatever the registry's answer was.
    let asked = ["failed to do request", "pull access denied", "failed to resolve source metadata"];
    BuildLine::Failed(if asked.iter().any(|sign| problem.message.contains(sign)) {
        problem.hint(
            "check the name in `FROM`; for a private registry log in on the node that builds, or load the image there \
             with `docker load`",
        )
    } else {
        problem
    })
}

/// A body from parts that come later.
pub(super) fn body(
    parts: impl Stream<Item = Result<Bytes, wharf_api::transport::BodyError>> + Send + 'static,
) -> Body {
    http_body_util::StreamBody::new(parts.map(|part| part.map(http_body::Frame::data))).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use wharf_model::{BuildOptions, Bytes as Size, Ulimit};

    use super::*;

    const OLD: ApiVersion = ApiVersion { major: 1, minor: 41 };
    const NEW: ApiVersion = ApiVersion { major: 1, minor: 47 };

    fn wish(options: BuildOptions) -> BuildRequest {
        BuildRequest {
            reference: "shop-web:git-1".into(),
            dockerfile: "docker/Dockerfile".into(),
            foreign_dockerfile: false,
            needs_buildkit: None,
            remote: None,
            options,
            builder: Builder::Auto,
            node: None,
            mark: None,
        }
    }

    #[test]
    fn buildkit_builds_unless_only_the_classic_builder_can() {
        let shm = || BuildOptions { shm_size: Some(Size(1)), ..BuildOptions::default() };
        assert_eq!(choose(&wish(BuildOptions::default()), OLD), Ok(Chosen::Buildkit));
        assert_eq!(choose(&wish(shm()), OLD), Ok(Chosen::Classic));
        assert_eq!(choose(&wish(shm()), NEW), Ok(Chosen::Buildkit));
        let foreign = BuildRequest { foreign_dockerfile: true, ..wish(BuildOptions::default()) };
        assert_eq!(choose(&foreign, OLD), Ok(Chosen::Classic));
        let heredoc = BuildRequest { needs_buildkit: Some("a heredoc".into()), ..foreign };
        assert_eq!(choose(&heredoc, OLD), Ok(Chosen::Buildkit));
        let both = BuildRequest { options: shm(), ..heredoc };
        let refused = choose(&both, OLD).unwrap_err();
        assert!(
            refused.message.contains("a heredoc") && refused.message.contains("`shm_size`"),
            "{refused:?}"
        );
        assert_eq!(choose(&both, NEW), Ok(Chosen::Buildkit));
        let classic = BuildRequest { builder: Builder::Classic, ..both };
        assert!(choose(&classic, NEW).unwrap_err().message.contains("the classic builder does not have"));
    }

    #[test]
    fn every_option_reaches_the_engine() {
        let options = BuildOptions {
            args: [("A".to_owned(), "b c&d".to_owned())].into(),
            target: Some("final".into()),
            labels: [("l".to_owned(), "v".to_owned())].into(),
            network: Some("host".into()),
            shm_size: Some(Size(64 << 20)),
            cache_from: vec!["app:cache".into()],
            no_cache: true,
            pull: true,
            extra_hosts: vec!["db:10.0.0.7".into()],
            tags: vec!["app:extra".into()],
            ulimits: [("nofile".to_owned(), Ulimit { soft: 1, hard: 2 })].into(),
            platform: Some("linux/amd64".into()),
            secrets: Default::default(),
        };
        let path = path(&wish(options), Chosen::Classic, OLD, None);
        for part in [
            "/v1.41/build?rm=1&forcerm=1&version=1&t=shop-web:git-1&t=app:extra&dockerfile=docker/Dockerfile",
            "&nocache=1",
            "&pull=1",
            "&buildargs=%7B%22A%22:%22b%20c%26d%22%7D",
            "&labels=%7B%22l%22:%22v%22%7D",
            "&cachefrom=%5B%22app:cache%22%5D",
            "&ulimits=%5B%7B%22Hard%22:2%2C%22Name%22:%22nofile%22%2C%22Soft%22:1%7D%5D",
            "&networkmode=host",
            "&shmsize=67108864",
            "&extrahosts=db:10.0.0.7",
            "&target=final",
            "&platform=linux/amd64",
        ] {
            assert!(path.contains(part), "{part} in {path}");
        }
    }
}
