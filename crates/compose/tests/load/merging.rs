//! Several files: overrides, `extends`, `include`.

use wharf_model::{MountSource, ServiceSpec};

use crate::folder::{Folder, web};

fn ports(service: &ServiceSpec) -> Vec<(Option<u16>, u16)> {
    service.ports.iter().map(|port| (port.published, port.target)).collect()
}
fn binds(service: &ServiceSpec) -> Vec<&str> {
    let mounts = service.container.mounts.iter();
    mounts
        .filter_map(|mount| match &mount.source {
            MountSource::Bind { path, .. } => Some(path.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn mappings_merge_lists_append_and_commands_are_replaced() {
    let folder = web("command: a b\nenvironment: [A=1, B=2]\nports: ['80:80', '443:443']\ndns: 1.1.1.1\nlabels: {a: x}\nhealthcheck: {test: [CMD, a], retries: 3}")
        .and("over.yaml", "services: {web: {image: j, command: [c], environment: {B: 3, C: }, ports: ['81:81', '80:80'], dns: [8.8.8.8], labels: [b=y], healthcheck: {test: b}}}\n");
    let service = folder.web();
    assert_eq!(service.image, "j");
    assert_eq!(service.container.command, Some(vec!["c".to_owned()]));
    let environment: Vec<_> = service.container.environment.clone().into_iter().collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        environment,
        [("A".to_owned(), some("1")), ("B".to_owned(), some("3")), ("C".to_owned(), None)]
    );
    assert_eq!(ports(&service), [(Some(80), 80), (Some(443), 443), (Some(81), 81)]);
    assert_eq!(service.container.dns.len(), 2);
    assert_eq!(service.container.labels.len(), 2);
    let check = service.healthcheck.unwrap();
    assert_eq!((check.test, check.retries), (Some(vec!["CMD-SHELL".to_owned(), "b".to_owned()]), Some(3)));
}

#[test]
fn mounts_are_unique_by_target() {
    let folder = web("volumes: ['data:/data', '/a:/x']")
        .and("over.yaml", "services: {web: {volumes: ['/b:/x:ro']}}\nvolumes: {data: }\n");
    let service = folder.web();
    assert_eq!(binds(&service), ["/b"]);
    assert_eq!(service.container.mounts.len(), 2);
    assert!(service.container.mounts[1].read_only);
}

#[test]
fn reset_removes_and_override_replaces() {
    let folder = web("ports: ['80:80']\nenvironment: {A: 1, B: 2}\ncap_add: [NET_ADMIN]\nuser: root\nlabels: {a: b}")
        .and("over.yaml", "services:\n  web:\n    ports: !override ['81:80']\n    environment: {A: !reset null}\n    cap_add: !reset []\n    user: !reset\n    labels: !override {c: d}\n");
    let service = folder.web();
    assert_eq!(ports(&service), [(Some(81), 80)]);
    assert_eq!(service.container.environment.keys().collect::<Vec<_>>(), ["B"]);
    assert_eq!((service.container.cap_add.len(), service.container.user), (0, None));
    assert_eq!(service.container.labels.keys().collect::<Vec<_>>(), ["c"]);
}

#[test]
fn documents_of_one_file_merge_as_files_do() {
    let folder = Folder::with("services: {web: {image: a, user: u}}\n---\nservices: {web: {image: b}}\n");
    let service = folder.web();
    assert_eq!((service.image.as_str(), service.container.user.as_deref()), ("b", Some("u")));
}

#[test]
fn one_file_may_complete_another() {
    let folder = web("depends_on: {db: {condition: service_healthy}}")
        .and("over.yaml", "services: {web: {depends_on: {db: {required: false}}}, db: {image: i}}\n");
    let dependency = folder.web().depends_on.into_values().next().unwrap();
    assert!(!dependency.required);
}

#[test]
fn a_wrong_kind_in_an_override_is_placed_there() {
    let folder = web(
        "extra_hosts: [a=1.1.1.1]\nhealthcheck: {test: x}\nlogging: {options: {a: b}}\nbuild: {args: {A: 1}}",
    )
    .and("over.yaml", "services: {web: {image: [x], logging: {options: {a: [b]}}}}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: `image` must be a string, but it is a list
     --> /app/over.yaml:1:18 (services.web.image)
      |
    1 | services: {web: {image: [x], logging: {options: {a: [b]}}}}
      |                  ^^^^^
      = help: write text, in quotes if it has special characters
    error: `a` must be a string or a number, but it is a list
     --> /app/over.yaml:1:50 (services.web.logging.options.a)
      |
    1 | services: {web: {image: [x], logging: {options: {a: [b]}}}}
      |                                                  ^
      = help: write text, in quotes if it has special characters
    ");
}

#[test]
fn a_service_extends_another_one_and_files_keep_their_folders() {
    let folder = Folder::with("services:\n  base: {image: b, environment: {A: 1, B: 1}, volumes: ['./here:/a']}\n  web: {extends: base, environment: {B: 2}}\n  far: {extends: {service: common, file: lib/common.yaml}, image: own}\n")
        .file("lib/common.yaml", "services:\n  common: {extends: {service: root}, volumes: ['./there:/b']}\n  root: {image: r, env_file: common.env, volumes: ['~/x:/c']}\n  broken: {zzz: 1}\n")
        .file("lib/common.env", "FROM=lib\n")
        .variable("HOME", "/home/me");
    let app = folder.app();
    let service = |name: &str| app.services[&name.parse().unwrap()].clone();
    assert_eq!(service("web").image, "b");
    assert_eq!(binds(&service("web")), ["/app/here"]);
    assert_eq!(service("web").container.environment["B"].as_deref(), Some("2"));
    assert_eq!(service("far").image, "own");
    assert_eq!(binds(&service("far")), ["/home/me/x", "/app/lib/there"]);
    assert_eq!(service("far").container.environment["FROM"].as_deref(), Some("lib"));
}

#[test]
fn extending_what_is_not_there_or_oneself_is_refused() {
    let folder = Folder::with("services:\n  a: {extends: b}\n  b: {extends: {service: a}}\n  c: {image: i, extends: {service: bse, file: lib.yaml}}\n  d: {image: i, extends: {service: x, file: none.yaml}}\n")
        .file("lib.yaml", "services: {base: {image: i}}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: services extend each other: b -> a -> b
     --> /app/compose.yaml:2:16 (services.a.extends)
      |
    2 |   a: {extends: b}
      |                ^
      = help: take what they share into a service of its own, and extend that
    error: services extend each other: a -> b -> a
     --> /app/compose.yaml:3:26 (services.b.extends)
      |
    3 |   b: {extends: {service: a}}
      |                          ^
      = help: take what they share into a service of its own, and extend that
    error: `/app/lib.yaml` has no service `bse` to extend
     --> /app/compose.yaml:4:36 (services.c.extends)
      |
    4 |   c: {image: i, extends: {service: bse, file: lib.yaml}}
      |                                    ^^^
      = help: did you mean `base`?
    error: there is no file `/app/none.yaml`
     --> /app/compose.yaml:5:45 (services.d.extends)
      |
    5 |   d: {image: i, extends: {service: x, file: none.yaml}}
      |                                             ^^^^^^^^^
      = help: check the path and where it begins, or make the file
    ");
}

#[test]
fn an_included_file_brings_its_own_folder_and_variables() {
    let folder = Folder::with("include:\n  - db/compose.yaml\n  - {path: [cache/a.yaml, cache/b.yaml], env_file: cache/c.env}\nservices: {web: {image: i, depends_on: [db, cache]}}\n")
        .file("db/compose.yaml", "services: {db: {image: 'db:${TAG}', volumes: ['./x:/x', 'data:/d']}}\nvolumes: {data: }\n")
        .file("db/.env", "TAG=7\n")
        .file("cache/a.yaml", "services: {cache: {image: 'c:${TAG}'}}\n")
        .file("cache/b.yaml", "services: {cache: {user: u}}\n")
        .file("cache/c.env", "TAG=8\n");
    let app = folder.app();
    let service = |name: &str| app.services[&name.parse().unwrap()].clone();
    assert_eq!((service("db").image.as_str(), service("cache").image.as_str()), ("db:7", "c:8"));
    assert_eq!(binds(&service("db")), ["/app/db/x"]);
    assert_eq!(service("cache").container.user.as_deref(), Some("u"));
    assert_eq!(app.volumes.len(), 1);
}

#[test]
fn inclusion_that_circles_is_refused() {
    let folder = Folder::with("include: [a.yaml, none.yaml]\nservices: {web: {image: i}}\n")
        .file("a.yaml", "include: [compose.yaml]\nservices: {web: {image: j}}\n");
    insta::assert_snapshot!(folder.complaints(), @r"
    error: there is no file `/app/none.yaml`
     --> /app/compose.yaml:1:19 (include[1])
      |
    1 | include: [a.yaml, none.yaml]
      |                   ^^^^^^^^^
      = help: check the path and where it begins, or make the file
    error: files include each other: /app/compose.yaml -> /app/a.yaml -> /app/compose.yaml
     --> /app/a.yaml:1:11 (include[0])
      |
    1 | include: [compose.yaml]
      |           ^^^^^^^^^^^^
      = help: take what they share into a file of its own, and include that
    ");
}
