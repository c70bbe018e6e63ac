//! Contexts: where the CLI finds a cluster, and as whom it speaks to it.
//!
//! One file, readable by its owner only, holds them all. It is replaced as a whole, so that an interrupted write loses nothing.

use std::{
    collections::BTreeMap,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use wharf_api::transport::{Identity, ServerAddress, Trust};

/// Every context of a user.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one in use unless another is named.
    pub(crate) current: Option<String>,
    /// By name.
    pub(crate) contexts: BTreeMap<String, Context>,
    #[serde(skip)]
    path: PathBuf,
}

/// A cluster and an identity in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Where its servers answer; tried in order.
    pub(crate) servers: Vec<ServerAddress>,
    /// Its authority.
    pub(crate) trust: Trust,
    /// As whom.
    pub(crate) identity: Identity,
    /// The environment of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) environment: Option<String>,
}

impl Contexts {
    /// Reads the file; an absent one holds no contexts.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), ..Self::default() });
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read the contexts in {shown}")),
        };
        let mode = std::fs::metadata(path)?.mode();
        if mode & 0o077 != 0 {
            bail!(crate::hint(
                format!("{shown} holds keys and can be read by others (mode {:03o})", mode & 0o777),
                format!("chmod 600 {shown}")
            ));
        }
        let contexts: Self = serde_json::from_str(&text).map_err(|error| {
            crate::hint(
                format!("{shown} is damaged: {error}"),
                "mend it, or move it away and import the contexts again with `wharf context import`",
            )
        })?;
        Ok(Self { path: path.to_owned(), ..contexts })
    }

    /// Writes the file with mode 0600.
    pub(crate) fn save(&self) -> Result<()> {
        let shown = self.path.display();
        let write = || -> Result<()> {
            if let Some(parent) = self.path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let temporary = self.path.with_extension(format!("new-{}", std::process::id()));
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write the contexts to {shown}"))
    }

    /// Where they are kept.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The context of this name, or the current one.
    pub(crate) fn pick(&self, name: Option<&str>) -> Result<(&str, &Context)> {
        let Some(name) = name.or(self.current.as_deref()) else {
            bail!(crate::hint(
                format!("there is no context in {}", self.path.display()),
                "on a server, `wharf server init` writes one; elsewhere bring one with `wharf context export` there and `wharf context import` here",
            ));
        };
        match self.contexts.get_key_value(name) {
            Some((name, context)) => Ok((name, context)),
            None => {
                let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
                bail!(crate::hint(
                    format!("there is no context `{name}`"),
                    format!("there are: {}", if known.is_empty() { "none".into() } else { known.join(", ") }),
                ))
            }
        }
    }

    /// Adds or replaces a context; the first becomes the current one.
    pub(crate) fn put(&mut self, name: &str, context: Context) {
        self.contexts.insert(name.to_owned(), context);
        if self.current.is_none() {
            self.current = Some(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn context() -> Context {
        Context {
            servers: vec!["10.0.0.1:7420".parse().unwrap()],
            trust: Trust { ca: "ca".into() },
            identity: Identity { certificate: "certificate".into(), key: "key".into() },
            environment: None,
        }
    }

    #[test]
    fn contexts_are_kept_in_a_file_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wharf/contexts.json");
        let mut contexts = Contexts::load(&path).unwrap();
        assert!(contexts.pick(None).unwrap_err().to_string().contains("no context"));
        contexts.put("home", context());
        contexts.save().unwrap();

        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Contexts::load(&path).unwrap();
        assert_eq!(again.pick(None).unwrap(), ("home", &context()));
        assert!(again.pick(Some("work")).is_err());

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Contexts::load(&path).unwrap_err().to_string();
        assert!(error.contains("can be read by others"), "{error}");
    }
}
