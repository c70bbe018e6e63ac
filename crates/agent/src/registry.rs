//! Logins of registries, from a file as `docker login` writes it.

use std::path::PathBuf;

use base64::Engine;
use serde::Deserialize;
use wharf_process::blocking;

use crate::runtime::Credentials;

const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Where logins are looked up. The file is read each time, so that a new login counts at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryLogins {
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: Option<String>,
}

impl RegistryLogins {
    /// Those of a `config.json`; none if no file is named.
    pub const fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    /// The login for an image's registry, if there is one.
    pub async fn of(&self, reference: &str) -> Option<Credentials> {
        let file = self.file.clone()?;
        let text = blocking(move || std::fs::read_to_string(file)).await.ok()?;
        find(&text, registry_of(reference))
    }

    /// Every login there is, for builds: which registries a Dockerfile names is the engine's to find out.
    pub async fn all(&self) -> Vec<Credentials> {
        let Some(file) = self.file.clone() else { return Vec::new() };
        let Ok(text) = blocking(move || std::fs::read_to_string(file)).await else { return Vec::new() };
        let config: ConfigFile = serde_json::from_str(&text).unwrap_or_default();
        config.auths.keys().filter_map(|registry| find(&text, registry)).collect()
    }
}

/// The registry that a reference names; Docker Hub by its own key.
fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        Some(_) | None => DOCKER_HUB,
    }
}

fn find(text: &str, registry: &str) -> Option<Credentials> {
    let config: ConfigFile = serde_json::from_str(text)
        .inspect_err(|error| tracing::warn!(%error, "the file of registry logins is not readable"))
        .ok()?;
    let bare = |key: &str| {
        key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/').to_owned()
    };
    let (_, entry) =
        config.auths.into_iter().find(|(key, _)| key == registry || bare(key) == bare(registry))?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth).ok()?;
    let pair = String::from_utf8(decoded).ok()?;
    let (username, password) = pair.split_once(':').unwrap_or((&pair, ""));
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
        identity_token: entry.identitytoken,
        server: registry.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_found_by_registry() {
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YWRhOnB3"},
                                 "registry.example.com:5000": {"auth": "Ym9iOmE6Yg=="}}, "credsStore": "x"}"#;
        assert_eq!(find(text, registry_of("nginx:1")).unwrap().username, "ada");
        assert_eq!(find(text, registry_of("library/nginx")).unwrap().password, "pw");
        let own = find(text, registry_of("registry.example.com:5000/a/b:1")).unwrap();
        assert_eq!((own.username.as_str(), own.password.as_str()), ("bob", "a:b"));
        assert!(find(text, registry_of("ghcr.io/a/b")).is_none());
    }
}
