//! No input makes the loader panic, loop or grow without bound.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use wharf_compose::{Request, load};

use crate::folder::Folder;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let files: BTreeMap<PathBuf, Vec<u8>> = [("/a/compose.yaml".into(), bytes)].into();
        load(&Request { files: vec!["/a/compose.yaml".into()], ..Request::default() }, &files);
    }

    #[test]
    fn no_text_like_yaml_panics(text in "[a-c:\\-\\[\\]\\{\\}&*!<>|#'\",$ \n\t]{0,80}") {
        Folder::with(&text).load();
    }

    /// Any value behind any key: kinds meet keys that do not expect them.
    #[test]
    fn no_value_panics(
        key in proptest::sample::select(KEYS.as_slice()),
        value in proptest::sample::select(VALUES.as_slice()),
        inner in proptest::sample::select(KEYS.as_slice()),
    ) {
        for text in [
            format!("services: {{web: {{image: i, {key}: {value}}}}}"),
            format!("services: {{web: {{image: i, {key}: {{{inner}: {value}}}}}}}"),
            format!("services: {{web: {{image: i, {key}: [{value}, {{{inner}: {value}}}]}}}}"),
            format!("services: {{web: {{image: i, deploy: {{{key}: {{{inner}: {value}}}}}}}}}"),
            format!("{key}: {value}\nservices: {{web: {{image: i}}}}"),
            format!("{key}: {{a: {{{inner}: {value}}}}}\nservices: {{web: {{image: i, networks: [a], {key}: [a]}}}}"),
        ] {
            let folder = Folder::with(&text).and("over.yaml", &text);
            let loaded = folder.load();
            let errors = loaded.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
            prop_assert_eq!(loaded.app.is_some(), errors == 0, "{}", text);
            for diagnostic in &loaded.diagnostics {
                prop_assert!(diagnostic.is_error() || !diagnostic.message.is_empty());
                let _ = diagnostic.to_string();
            }
        }
    }
}

const VALUES: [&str; 24] = [
    "",
    "~",
    "true",
    "yes",
    "0",
    "-1",
    "80",
    "1.5",
    ".nan",
    "99999999999999999999",
    "text",
    "'80:80'",
    "'a=b'",
    "1g",
    "30s",
    "[]",
    "{}",
    "[a]",
    "[1]",
    "[[a]]",
    "{a: b}",
    "{a: {b: c}}",
    "!reset null",
    "!override {a: b}",
];
const KEYS: [&str; 70] = [
    "build",
    "command",
    "environment",
    "env_file",
    "ports",
    "expose",
    "volumes",
    "depends_on",
    "networks",
    "restart",
    "deploy",
    "healthcheck",
    "labels",
    "configs",
    "secrets",
    "profiles",
    "scale",
    "extends",
    "container_name",
    "hostname",
    "user",
    "init",
    "devices",
    "dns",
    "extra_hosts",
    "network_mode",
    "links",
    "pid",
    "shm_size",
    "sysctls",
    "ulimits",
    "tmpfs",
    "logging",
    "mem_limit",
    "cpus",
    "cpu_period",
    "blkio_config",
    "storage_opt",
    "stop_signal",
    "stop_grace_period",
    "pull_policy",
    "platform",
    "gpus",
    "develop",
    "models",
    "post_start",
    "x-wharf",
    "name",
    "include",
    "version",
    "mode",
    "replicas",
    "resources",
    "limits",
    "placement",
    "update_config",
    "test",
    "interval",
    "target",
    "source",
    "type",
    "external",
    "file",
    "content",
    "ipam",
    "config",
    "subnet",
    "driver",
    "probe",
    "path",
];

#[test]
fn many_services_load_quickly_and_complaints_are_bounded() {
    let services: String = (0..2000).map(|n| format!("  s{n}: {{image: i, zzz{n}: 1}}\n")).collect();
    let loaded = Folder::with(&format!("services:\n{services}")).load();
    assert_eq!(loaded.diagnostics.len(), 501);
    assert!(loaded.diagnostics[500].message.contains("the rest is not shown"));
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let folder = Folder::with(&"# comment\n".repeat(2_000_000));
    assert!(folder.complaints().contains("is too large"), "{}", folder.complaints());
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_line() {
    let files: BTreeMap<PathBuf, Vec<u8>> = [("/a/c.yaml".into(), b"a: b\nc: \xff\n".to_vec())].into();
    let loaded = load(&Request { files: vec!["/a/c.yaml".into()], ..Request::default() }, &files);
    assert_eq!(loaded.diagnostics[0].message, "`/a/c.yaml` is not UTF-8 text: line 2 has other bytes");
}

/// Found by the fuzzer: the column and the excerpt counted the mark.
#[test]
fn a_byte_order_mark_is_no_character_of_a_line_that_is_no_text() {
    let files: BTreeMap<PathBuf, Vec<u8>> =
        [("/a/c.yaml".into(), b"\xef\xbb\xbfv\xf4ces:\n".to_vec())].into();
    let loaded = load(&Request { files: vec!["/a/c.yaml".into()], ..Request::default() }, &files);
    let place = loaded.diagnostics[0].place.as_ref().unwrap();
    assert_eq!((place.line, place.column, place.excerpt.as_str()), (1, 2, "v\u{fffd}ces:"));
}

#[test]
fn ranges_of_ports_are_bounded_in_all() {
    let ranges = vec!["1-65535:1-65535"; 50].join(", ");
    let folder = Folder::with(&format!("services: {{web: {{image: i, ports: [{ranges}]}}}}"));
    assert!(folder.complaints().contains("more ports than the loader accepts"));
}
