//! `build:`: what an image is built from, for a builder that is told by the engine's API.
//!
//! What such a builder cannot be told is refused here, before anything is sent anywhere.

use std::collections::BTreeMap;

use base64::Engine as _;
use wharf_model::{AdditionalContext, BuildContext, BuildOptions, BuildSpec, Dockerfile, ServiceName};

use super::{Typing, values};
use crate::canonical::is_remote;
use crate::diagnostic::{Complaint, Key};
use crate::node::{Entry, Mapping, Node};

impl Typing<'_, '_> {
    /// Reads `build`. A context that is not given is an empty folder name: the loader knows the project's.
    pub(super) fn build(&mut self, service: &Mapping, entry: &Entry, key: &Key<'_>) -> Option<BuildSpec> {
        let build = entry.node.as_mapping()?;
        let context = match build.get("context").and_then(Node::as_str) {
            Some(text) if is_remote(text) => BuildContext::Remote(text.to_owned()),
            folder => BuildContext::Folder(folder.unwrap_or_default().to_owned()),
        };
        let mut spec = BuildSpec {
            named: service.contains("image"),
            dockerfile: self.dockerfile(build, key, &context)?,
            context,
            additional_contexts: BTreeMap::new(),
            options: BuildOptions::default(),
            always: service.get("pull_policy").and_then(Node::as_str) == Some("build"),
        };
        for (field, entry) in build.iter() {
            let key = key.field(field);
            if !entry.node.is_invalid() {
                self.build_key(field, entry, &key, &mut spec);
            }
        }
        if let (BuildContext::Remote(_), Some(contexts)) = (&spec.context, build.entry("additional_contexts"))
            && !spec.additional_contexts.is_empty()
        {
            let message = "the engine fetches the context, so its Dockerfile cannot be given further ones";
            self.report()
                .unsupported(contexts.key, &key.field("additional_contexts"), message)
                .hint("clone the repository and name its folder");
        }
        if let Some(platform) = service.get("platform").and_then(Node::as_str) {
            spec.options.platform = Some(platform.to_owned());
        }
        Some(spec)
    }

    fn dockerfile(&mut self, build: &Mapping, key: &Key<'_>, context: &BuildContext) -> Option<Dockerfile> {
        let remote = matches!(context, BuildContext::Remote(_));
        match (build.entry("dockerfile"), build.entry("dockerfile_inline")) {
            (Some(file), Some(inline)) => {
                let message = "`dockerfile` and `dockerfile_inline` are both given";
                self.report()
                    .error(Complaint::Conflict, inline.key, &key.field("dockerfile_inline"), message)
                    .hint("keep one of them");
                self.report().relate(file.key, "`dockerfile` is here".to_owned());
                None
            }
            (None, Some(inline)) => {
                let key = key.field("dockerfile_inline");
                if remote {
                    self.report()
                        .unsupported(
                            inline.key,
                            &key,
                            "the engine fetches the context with its own Dockerfile",
                        )
                        .hint("clone the repository and name its folder, or put the Dockerfile into it");
                    return None;
                }
                Some(Dockerfile::Inline(values::full_text(self.report(), inline, &key)?))
            }
            (Some(file), None) => {
                let key = key.field("dockerfile");
                let name = values::full_text(self.report(), file, &key)?;
                if remote && (name.starts_with('/') || name.split('/').any(|part| part == "..")) {
                    let message = format!("`{name}` is not in the repository");
                    self.report()
                        .error(Complaint::InvalidValue, file.place(), &key, message)
                        .hint("name it as seen from the repository's folder");
                    return None;
                }
                Some(Dockerfile::File(name))
            }
            (None, None) => Some(Dockerfile::File("Dockerfile".to_owned())),
        }
    }

    fn build_key(&mut self, field: &str, entry: &Entry, key: &Key<'_>, spec: &mut BuildSpec) {
        let options = &mut spec.options;
        let on = values::flag(entry) == Some(true);
        match field {
            "context" | "dockerfile" | "dockerfile_inline" => {}
            "args" => options.args.extend(self.build_args(entry)),
            "labels" => options.labels = values::text_map(entry),
            "target" => options.target = values::text(entry).filter(|target| !target.is_empty()),
            "no_cache" => options.no_cache = on,
            "pull" => options.pull = on,
            "shm_size" => options.shm_size = values::size(self.report(), entry, key).map(wharf_model::Bytes),
            "ulimits" => options.ulimits = self.ulimits(entry, key),
            "tags" => options.tags = values::strings(entry),
            "extra_hosts" => {
                let lines = values::strings(entry).into_iter();
                options.extra_hosts = lines.map(|line| line.replacen('=', ":", 1)).collect();
            }
            "network" => match entry.node.as_str() {
                None | Some("" | "default") => {}
                Some(network @ ("host" | "none")) => options.network = Some(network.to_owned()),
                Some(network) => {
                    let message = format!("the steps of a build cannot be on the network `{network}`");
                    self.report()
                        .unsupported(entry.place(), key, message)
                        .hint("write `host` or `none`, or leave it out: steps reach what their node reaches");
                }
            },
            "cache_from" => options.cache_from = self.cache_from(entry, key),
            "cache_to" => self.cache_to(entry, key, options),
            "platforms" => {
                let platforms = values::strings(entry);
                match platforms.as_slice() {
                    [] => {}
                    [one] => options.platform = Some(one.clone()),
                    _ => {
                        self.report()
                            .unsupported(
                                entry.key,
                                key,
                                "an image is built for the one platform of its builder",
                            )
                            .hint("keep one of them, and make a service for each platform");
                    }
                }
            }
            "secrets" => options.secrets = self.build_secrets(entry, key),
            "additional_contexts" => spec.additional_contexts = self.additional_contexts(entry, key),
            "isolation" if matches!(entry.node.as_str(), None | Some("" | "default")) => {}
            "provenance" | "sbom" if entry.node.scalar_text().is_none_or(|text| text == "false") => {}
            "privileged" if !on => {}
            "entitlements" => {
                // Docker's own builder grants the host's network to whoever asks for it with `network: host`.
                if values::strings(entry).iter().any(|name| name != "network.host") {
                    self.report()
                        .unsupported(
                            entry.key,
                            key,
                            "the builder of Docker Engine grants `network.host` only",
                        )
                        .hint("build such an image elsewhere, push it, and name it with `image:`");
                }
            }
            "isolation" => {
                self.report()
                    .unsupported(
                        entry.key,
                        key,
                        "`isolation` is for Windows containers; Wharf runs Linux ones",
                    )
                    .hint("remove it");
            }
            "provenance" | "sbom" => {
                self.report()
                    .unsupported(entry.key, key, "the builder of Docker Engine writes no attestations")
                    .hint(format!("write `{field}: false`, or build elsewhere, push, and name the image"));
            }
            "privileged" => {
                self.report()
                    .unsupported(entry.key, key, "the builder of Docker Engine runs no privileged steps")
                    .hint("build such an image elsewhere, push it, and name it with `image:`");
            }
            "ssh" => {
                self.report()
                    .unsupported(entry.key, key, "the build runs on a node, and your SSH keys stay on your machine")
                    .hint("give a deploy key as a build secret: `secrets: [deploy_key]`, `RUN --mount=type=secret,id=deploy_key …`");
            }
            "no_cache_filter" => {
                self.report()
                    .unsupported(entry.key, key, "the engine's API reuses every stage or none")
                    .hint("write `no_cache: true`");
            }
            _ => self.unforeseen(entry, key),
        }
    }

    /// `ARG`s; one without a value takes that of the environment, and is left to the Dockerfile if there is none.
    fn build_args(&self, entry: &Entry) -> BTreeMap<String, String> {
        let value = |name: &str, node: &Node| match node.is_null() {
            true => self.environment.get(name).cloned(),
            false => node.scalar_text(),
        };
        let args = values::entries(entry);
        args.filter_map(|(name, entry)| Some((name.to_owned(), value(name, &entry.node)?))).collect()
    }

    fn cache_from(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<String> {
        let mut images = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            match cache_entry(text) {
                ("registry", Some(image)) => images.push(image.to_owned()),
                (kind, _) => {
                    let message = format!("the builder of Docker Engine reads no cache of type `{kind}`");
                    self.report()
                        .unsupported(item.span, &key.item(index), message)
                        .hint("name an image: `- registry.example/app:cache`");
                }
            }
        }
        images
    }

    fn cache_to(&mut self, entry: &Entry, key: &Key<'_>, options: &mut BuildOptions) {
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            if cache_entry(text).0 == "inline" {
                options.args.insert("BUILDKIT_INLINE_CACHE".to_owned(), "1".to_owned());
                continue;
            }
            self.report()
                .unsupported(
                    item.span,
                    &key.item(index),
                    "the builder of Docker Engine keeps its cache on its node",
                )
                .hint("write `type=inline`, or remove it: the node that built last is chosen again");
        }
    }

    /// Secrets of the file's top level, by the id under which a step finds them.
    fn build_secrets(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, String> {
        let mut secrets = BTreeMap::new();
        let declared = self.root.get("secrets").and_then(Node::as_mapping);
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let (Some(mapping), key) = (item.as_mapping(), key.item(index)) else { continue };
            let Some(source) = mapping.get("source").and_then(Node::as_str) else { continue };
            if !self.declared("secrets", source, item.span, &key) {
                continue;
            }
            let Some(secret) = declared.and_then(|all| all.get(source)).and_then(Node::as_mapping) else {
                continue;
            };
            for (field, value) in mapping.iter().filter(|(field, _)| matches!(*field, "uid" | "gid" | "mode"))
            {
                let message =
                    format!("`{field}` of a secret of a build has no effect: a step says how it mounts it");
                self.report()
                    .warn(Complaint::Note, value.key, &key.field(field), message)
                    .hint(format!("write `RUN --mount=type=secret,id=…,{field}=…` in the Dockerfile"));
            }
            let group = Key::Root.field("secrets");
            let place = group.field(source);
            let content = match (secret.entry("file"), secret.entry("environment"), secret.entry("content")) {
                (Some(file), ..) => self.content_of_file(file, &place.field("file")),
                (_, Some(variable), _) => self.content_of_variable(variable, &place.field("environment")),
                (_, _, Some(text)) => values::text(text).map(String::into_bytes),
                (None, None, None) => {
                    self.report()
                        .unsupported(
                            item.span,
                            &key,
                            "the content of an external secret never leaves the cluster",
                        )
                        .hint("give it `file` or `environment`");
                    None
                }
            };
            let id = mapping.get("target").and_then(Node::as_str).filter(|target| !target.is_empty());
            if let Some(content) = content {
                let text = base64::engine::general_purpose::STANDARD.encode(content);
                secrets.insert(id.unwrap_or(source).to_owned(), text);
            }
        }
        secrets
    }

    fn additional_contexts(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, AdditionalContext> {
        let mut contexts = BTreeMap::new();
        for (name, entry) in values::entries(entry) {
            let key = key.field(name);
            let Some(text) = entry.node.as_str() else { continue };
            let context = if let Some(image) = text.strip_prefix("docker-image://") {
                AdditionalContext::Image(image.to_owned())
            } else if let Some(service) = text.strip_prefix("service:") {
                let Some(service) = self.reference(service, entry.node.span, &key, true) else { continue };
                AdditionalContext::Service(service)
            } else if is_remote(text) || text.starts_with("oci-layout:") || text.starts_with("target:") {
                let message = format!("the engine's API cannot be given `{text}` as a further context");
                self.report()
                    .unsupported(entry.place(), &key, message)
                    .hint("name a folder, `docker-image://NAME` or `service:NAME`");
                continue;
            } else {
                AdditionalContext::Folder(text.to_owned())
            };
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if !name.chars().all(legal) || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
                let message = format!("the engine's API cannot replace `{name}`");
                self.report()
                    .unsupported(entry.key, &key, message)
                    .hint("name it like a stage, with letters, digits, `-`, `_` and `.`, and use that name in the Dockerfile");
                continue;
            }
            // Stages have names of small letters.
            contexts.insert(name.to_lowercase(), context);
        }
        contexts
    }
}

/// Type and image of a cache: `image`, `type=registry,ref=image`, `type=gha`.
fn cache_entry(text: &str) -> (&str, Option<&str>) {
    if !text.contains('=') {
        return ("registry", Some(text));
    }
    let field =
        |name: &str| text.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    (field("type").unwrap_or("registry"), field("ref"))
}

/// The name of an image that its service does not name: of the app and the service.
pub(super) fn default_name(app: &str, service: &ServiceName) -> String {
    let text = format!("{app}-{service}").to_lowercase();
    let mut name = String::with_capacity(text.len());
    for c in text.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '-' };
        // Signs stand between letters or digits, one at a time.
        if c != '-' || !(name.is_empty() || name.ends_with('-')) {
            name.push(c);
        }
    }
    name.trim_end_matches('-').to_owned()
}
