//! `build:`, into what is built and what a builder is told.

use wharf_model::{AdditionalContext, BuildContext, BuildSpec, Bytes, Dockerfile, Ulimit};

use crate::folder::Folder;

fn web(build: &str) -> Folder {
    Folder::with(&format!("name: shop\nservices:\n  web:\n    build:\n{build}"))
}

fn read(build: &str) -> BuildSpec {
    let folder = web(build);
    assert_eq!(folder.complaints(), "");
    folder.load().builds.remove(&"web".parse().unwrap()).unwrap()
}

#[test]
fn a_short_build_names_its_context_and_its_image_is_named_after_app_and_service() {
    let folder = Folder::with(
        "name: shop\nservices:\n  Web_1: {build: ./site}\n  api: {build: ., image: r.example/api:2}\n",
    );
    let loaded = folder.load();
    let app = loaded.app.unwrap();
    assert_eq!(app.services[&"Web_1".parse().unwrap()].image, "shop-web-1");
    assert_eq!(app.services[&"api".parse().unwrap()].image, "r.example/api:2");
    let web = &loaded.builds[&"Web_1".parse().unwrap()];
    assert_eq!(web.context, BuildContext::Folder("/app/site".into()));
    assert_eq!(web.dockerfile, Dockerfile::File("Dockerfile".into()));
    assert!(!web.named && loaded.builds[&"api".parse().unwrap()].named);
}

#[test]
fn every_key_that_a_builder_can_be_told_is_read() {
    let folder = Folder::with(
        "name: shop\nservices:\n  db: {build: ./db}\n  web:\n    platform: linux/amd64\n    pull_policy: build\n    build:\n      context: .\n      dockerfile: docker/Web\n      args: {A: 1, FROM_ENV: , UNSET: }\n      labels: [a=b]\n      target: final\n      network: host\n      shm_size: 64m\n      cache_from: [web:old, 'type=registry,ref=web:older']\n      cache_to: [type=inline]\n      no_cache: true\n      pull: true\n      extra_hosts: ['db:10.0.0.7']\n      tags: [web:extra]\n      ulimits: {nofile: {soft: 1, hard: 2}}\n      platforms: [linux/amd64]\n      provenance: false\n      sbom: false\n      privileged: false\n      isolation: default\n      entitlements: [network.host]\n      secrets: [token, {source: token, target: other}]\n      additional_contexts: [docs=../docs, base=docker-image://alpine:3, Data=service:db]\nsecrets:\n  token: {environment: TOKEN}\n",
    )
    .variable("TOKEN", "t")
    .variable("FROM_ENV", "e");
    assert_eq!(folder.complaints(), "");
    let spec = folder.load().builds.remove(&"web".parse().unwrap()).unwrap();
    assert!(spec.always);
    assert_eq!(spec.dockerfile, Dockerfile::File("docker/Web".into()));
    assert_eq!(
        spec.additional_contexts,
        [
            ("base".to_owned(), AdditionalContext::Image("alpine:3".into())),
            ("data".to_owned(), AdditionalContext::Service("db".parse().unwrap())),
            ("docs".to_owned(), AdditionalContext::Folder("/docs".into())),
        ]
        .into()
    );
    let options = spec.options;
    let args = [("A", "1"), ("BUILDKIT_INLINE_CACHE", "1"), ("FROM_ENV", "e")];
    assert_eq!(options.args, args.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(options.labels["a"], "b");
    assert_eq!(options.target.as_deref(), Some("final"));
    assert_eq!(options.network.as_deref(), Some("host"));
    assert_eq!(options.shm_size, Some(Bytes(64 << 20)));
    assert_eq!(options.cache_from, ["web:old", "web:older"]);
    assert!(options.no_cache && options.pull);
    assert_eq!(options.extra_hosts, ["db:10.0.0.7"]);
    assert_eq!(options.tags, ["web:extra"]);
    assert_eq!(options.ulimits["nofile"], Ulimit { soft: 1, hard: 2 });
    assert_eq!(options.platform.as_deref(), Some("linux/amd64"));
    assert_eq!(
        options.secrets,
        [("token", "dA=="), ("other", "dA==")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
    );
    assert!(!format!("{options:?}").contains("dA=="), "secrets are never shown");
}

#[test]
fn a_build_without_a_context_has_the_projects_folder() {
    let spec = read("      dockerfile_inline: FROM scratch\n");
    assert_eq!(spec.context, BuildContext::Folder("/app".into()));
    assert_eq!(spec.dockerfile, Dockerfile::Inline("FROM scratch".into()));
}

#[test]
fn a_repository_is_fetched_by_the_engine() {
    for context in
        ["https://git.example/shop.git#main:web", "git@git.example:shop.git", "github.com/shop/web"]
    {
        let spec = read(&format!("      context: '{context}'\n      dockerfile: docker/Web\n"));
        assert_eq!(spec.context, BuildContext::Remote(context.into()));
    }
}

#[test]
fn what_no_builder_can_be_told_is_refused_before_anything_is_sent() {
    for (build, said) in [
        ("      ssh: [default]\n", "your SSH keys stay on your machine"),
        ("      privileged: true\n", "runs no privileged steps"),
        ("      sbom: true\n", "writes no attestations"),
        ("      provenance: mode=max\n", "writes no attestations"),
        ("      isolation: hyperv\n", "Windows"),
        ("      entitlements: [security.insecure]\n", "grants `network.host` only"),
        ("      network: backend\n", "cannot be on the network `backend`"),
        ("      platforms: [linux/amd64, linux/arm64]\n", "for the one platform"),
        ("      cache_from: [type=gha]\n", "no cache of type `gha`"),
        ("      cache_to: ['type=local,dest=x']\n", "keeps its cache on its node"),
        ("      no_cache_filter: [a]\n", "every stage or none"),
        ("      additional_contexts: {a: 'https://x.example/y.git'}\n", "as a further context"),
        ("      additional_contexts: {'alpine:3': ./x}\n", "cannot replace `alpine:3`"),
        (
            "      context: 'https://x.example/y.git'\n      additional_contexts: {a: ./b}\n",
            "cannot be given further ones",
        ),
        ("      dockerfile: a\n      dockerfile_inline: b\n", "are both given"),
        ("      context: 'https://x.example/y.git'\n      dockerfile: ../a\n", "is not in the repository"),
        (
            "      context: 'https://x.example/y.git'\n      dockerfile_inline: FROM a\n",
            "with its own Dockerfile",
        ),
    ] {
        let folder = web(build);
        let complaints = folder.complaints();
        assert!(complaints.contains(said) && complaints.contains("= help: "), "{build}: {complaints}");
        assert!(folder.load().app.is_none(), "{build}");
    }
}
