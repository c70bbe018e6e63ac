//! The normal form, where the corpus does not say what it should be.

use serde_json::{Value, json};

use crate::folder::{Folder, web};

/// The service `web` in the normal form.
fn service(folder: &Folder) -> Value {
    folder.project().to_json()["services"]["web"].clone()
}

#[test]
fn what_is_understood_is_written_out() {
    let folder = web("build: {args: [A, B=1, C]}\nlinks: ['db:data', cache]\nvolumes_from: [store:ro]\nipc: service:db\npull_policy: if_not_present\nsecrets: [key]\nports: ['8080:80', {target: 9}]\nvolumes: ['./x:/y/', 'data:/d:nocopy']\ndeploy: {}\nhealthcheck: {test: 'a $$b', interval: 90s, retries: 0}\nstop_grace_period: 0s\nmem_limit: 1g\ncpus: 0.10\nnetworks: {}")
        .variable("A", "outer")
        .file(
            "compose.yaml",
            &format!(
                "{}  db: {{image: i}}\n  cache: {{image: i}}\n  store: {{image: i}}\nvolumes: {{data: , unused: }}\nsecrets: {{key: {{environment: A}}}}\n",
                web("build: {args: [A, B=1, C]}\nlinks: ['db:data', cache]\nvolumes_from: [store:ro]\nipc: service:db\npull_policy: if_not_present\nsecrets: [key]\nports: ['8080:80', {target: 9}]\nvolumes: ['./x:/y/', 'data:/d:nocopy']\ndeploy: {}\nhealthcheck: {test: 'a $$b', interval: 90s, retries: 0}\nstop_grace_period: 0s\nmem_limit: 1g\ncpus: 0.10\nnetworks: {}").text("compose.yaml")
            ),
        );
    let started = |restart: bool| {
        let mut dependency = json!({"condition": "service_started", "required": true});
        if restart {
            dependency["restart"] = json!(true);
        }
        dependency
    };
    assert_eq!(
        service(&folder),
        json!({
            "image": "i",
            "build": {"context": "/app", "dockerfile": "Dockerfile", "args": {"A": "outer", "B": "1"}},
            "command": null,
            "entrypoint": null,
            "links": ["db:data", "cache"],
            "volumes_from": ["store:ro"],
            "ipc": "service:db",
            "depends_on": {"db": started(true), "cache": started(true), "store": started(false)},
            "pull_policy": "missing",
            "secrets": [{"source": "key", "target": "/run/secrets/key"}],
            "ports": [
                {"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp"},
                {"mode": "ingress", "target": 9, "protocol": "tcp"},
            ],
            "volumes": [
                {"type": "bind", "source": "/app/x", "target": "/y", "bind": {}},
                {"type": "volume", "source": "data", "target": "/d", "volume": {"nocopy": true}},
            ],
            "deploy": {"resources": {}, "placement": {}},
            "healthcheck": {"test": ["CMD-SHELL", "a $$b"], "interval": "1m30s", "retries": 0},
            "stop_grace_period": "0s",
            "mem_limit": "1073741824",
            "cpus": 0.1,
            "networks": {"default": null},
        })
    );
    let project = folder.project().to_json();
    assert_eq!(project["networks"], json!({"default": {"name": "app_default", "ipam": {}}}));
    assert_eq!(project["volumes"], json!({"data": {"name": "app_data"}}));
    assert_eq!(project["secrets"], json!({"key": {"name": "app_key", "environment": "A"}}));
}

#[test]
fn yaml_has_the_order_of_the_reference_and_every_extension() {
    let folder = Folder::with(
        "x-top: {b: 1, a: [yes, 'no']}\nservices:\n  web10: {image: i}\n  web2:\n    x-own: text\n    image: 'i:1'\n    environment: {TEN: '10', TEXT: \"a\\nb\\n\", NONE: , Z: '$$x', EMPTY: ''}\n    ports: ['80:80']\n    networks: {back: {x-deep: 1.5}}\nnetworks: {back: {x-net: null}}\nname: shop\n",
    );
    insta::assert_snapshot!(folder.project().to_yaml(), @r#"
    name: shop
    services:
      web2:
        environment:
          EMPTY: ""
          NONE: null
          TEN: "10"
          TEXT: |
            a
            b
          Z: $$x
        image: i:1
        networks:
          back:
            x-deep: 1.5
        ports:
          - mode: ingress
            target: 80
            published: "80"
            protocol: tcp
        x-own: text
      web10:
        image: i
        networks:
          default: null
    networks:
      back:
        name: shop_back
        x-net: null
      default:
        name: shop_default
    x-top:
      a:
        - "yes"
        - "no"
      b: 1
    "#);
}

#[test]
fn the_normal_form_is_a_fixed_point() {
    let folder = Folder::with(
        "name: shop\nservices:\n  web:\n    image: i\n    command: ['a', '$$x']\n    environment: {A: 'b$$c'}\n    ports: ['1-3:1-3/udp']\n    volumes: ['d:/d', './x:/y']\n    deploy: {resources: {limits: {cpus: '0.5', memory: 1g}}, restart_policy: {delay: 5s}}\n    extra_hosts: ['a:1.1.1.1']\n    ulimits: {nofile: 10, nproc: {soft: 1, hard: 2}}\n    x-a: {b: c}\nvolumes: {d: }\n",
    );
    let first = folder.project();
    let again = Folder::with(&first.to_yaml()).project();
    assert_eq!(again.to_json(), first.to_json());
    assert_eq!(again.to_yaml(), first.to_yaml());
}

#[test]
fn what_a_cluster_cannot_do_is_no_complaint() {
    let folder = web(
        "develop: {watch: [{path: ., action: rebuild}]}\ncontainer_name: x1\nvolumes_from: [web2]\nprovider: {type: x}\ncredential_spec: {file: f}\ndevices: ['/dev/a:/dev/b:strange']",
    );
    let text = folder.text("compose.yaml");
    let folder = folder.file("compose.yaml", &format!("{text}  web2: {{image: i}}\n"));
    assert_eq!(folder.projected().diagnostics, []);
    assert_eq!(service(&folder)["devices"][0]["permissions"], "strange");
}

#[test]
fn what_contradicts_itself_is_refused_by_both() {
    let folder = Folder::with(
        "services:\n  web: {image: i, depends_on: [bd], volumes: ['data:/x'], tmpfs: /x, networks: [none], secrets: [key], scale: 2, deploy: {replicas: 3}}\n  db: {networks: {a: }, network_mode: host}\n  one: {image: i, links: [two]}\n  two: {image: i, depends_on: [one]}\nnetworks: {a: }\n",
    );
    let messages: Vec<String> = folder.projected().diagnostics.into_iter().map(|d| d.message).collect();
    assert_eq!(
        messages,
        [
            "there is no service `bd`",
            "something is mounted at `/x` already",
            "the volume `data` is not defined",
            "the network `none` is not defined",
            "the secret `key` is not defined",
            "`scale` says 2 and `deploy.replicas` says 3",
            "the service `db` has neither `image` nor `build`",
            "`network_mode` and `networks` exclude each other",
            "services depend on each other: one -> two -> one",
        ]
    );
    assert!(folder.load().app.is_none());
}

#[test]
fn variables_may_stay_as_they_are_written() {
    let mut folder = web(
        "ports: ['${PORT:-80}:80', '81:81']\nhealthcheck: {retries: '${N}', interval: '$I'}\nvolumes: ['${SOURCE}:/x']\nscale: $S\ncommand: echo $X $$Y",
    );
    folder.request.no_interpolate = true;
    let service = service(&folder);
    assert_eq!(service["ports"][0], "${PORT:-80}:80");
    assert_eq!(service["ports"][1]["published"], "81");
    assert_eq!(service["healthcheck"], json!({"retries": "${N}", "interval": "$I"}));
    assert_eq!(service["volumes"], json!(["${SOURCE}:/x"]));
    assert_eq!(service["scale"], "$S");
    assert_eq!(service["command"], json!(["echo", "$X", "$$Y"]));
    assert_eq!(folder.projected().diagnostics, []);
}

#[test]
fn what_is_understood_may_stay_unwritten() {
    let mut folder = web("links: [db]\nbuild: {args: [A]}\nenvironment: [B]\nvolumes: ['data:/d/']");
    let text = folder.text("compose.yaml");
    folder = folder.file("compose.yaml", &format!("{text}volumes: {{data: }}\n"));
    folder.request.no_normalize = true;
    // Not looking for contradictions is another thing than not completing.
    assert!(folder.projected().project.is_none());
    folder.request.no_consistency = true;
    let project = folder.project().to_json();
    assert_eq!(
        project["services"]["web"],
        json!({
            "image": "i", "command": null, "entrypoint": null, "links": ["db"], "environment": {"B": null},
            "build": {"context": "/app", "args": {"A": null}},
            "volumes": [{"type": "volume", "source": "data", "target": "/d/", "volume": {}}],
        })
    );
    assert_eq!((&project["networks"], &project["volumes"]), (&Value::Null, &json!({"data": {}})));
}

#[test]
fn paths_may_stay_relative() {
    let mut folder = Folder::with("include: [sub/compose.yaml]\nservices: {web: {image: i, build: ., volumes: ['./a:/a', '~/b:/b', '/c:/c'], extends: {file: base/b.yaml, service: b}}}\n")
        .file("sub/compose.yaml", "services: {inner: {image: i, volumes: ['../x:/x', './y:/y']}}\n")
        .file("base/b.yaml", "services: {b: {env_file: e.env, volumes: ['./z:/z']}}\n")
        .file("base/e.env", "A=1\n");
    folder.request.no_path_resolution = true;
    folder.request.no_env_resolution = true;
    let project = folder.project().to_json();
    let sources = |service: &str| -> Vec<String> {
        let mounts = project["services"][service]["volumes"].as_array().unwrap();
        mounts.iter().map(|mount| mount["source"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(sources("web"), ["base/z", "./a", "~/b", "/c"]);
    assert_eq!(sources("inner"), ["x", "sub/y"]);
    assert_eq!(project["services"]["web"]["build"]["context"], ".");
    assert_eq!(project["services"]["web"]["env_file"], json!([{"path": "base/e.env"}]));
}

#[test]
fn env_files_lose_against_the_service_and_may_use_it() {
    let folder = web("environment: {A: own, NONE: , HOST: }\nenv_file:\n  - one.env\n  - {path: two.env, required: false}\n  - {path: none.env, required: false}\n  - {path: raw.env, format: raw}\nlabels: {l: own}\nlabel_file: labels")
        .variable("HOST", "outer")
        .file("one.env", "A=file\nB=$A-$HOST\nNONE=file\nC=1 #x\n")
        .file("two.env", "C=2\nD=${C}3\nHOST\n")
        .file("raw.env", "E='$A'\n")
        .file("labels", "l=file\nm=n\n");
    let service = service(&folder);
    assert_eq!(
        service["environment"],
        json!({"A": "own", "B": "own-outer", "C": "2", "D": "23", "E": "'$$A'", "HOST": "outer", "NONE": null})
    );
    assert_eq!(service["labels"], json!({"l": "own", "m": "n"}));
    assert!(service.get("env_file").is_none() && service.get("label_file").is_none());
}

#[test]
fn an_included_file_lies_below_the_one_that_includes_it() {
    let folder = Folder::with("include:\n  - path: [db/compose.yaml, db/over.yaml]\n    env_file: db/env\nservices:\n  web: {extends: db}\n  db: {environment: {A: over}, ports: !override ['2:2']}\n")
        .file("db/compose.yaml", "x-gone: 1\nservices: {db: {image: 'i:${TAG}', environment: {A: a, B: b}, ports: ['1:1'], volumes: ['./d:/d']}}\n")
        .file("db/over.yaml", "services: {db: {user: u, env_file: own.env}}\n")
        .file("db/own.env", "FROM=file\n")
        .file("db/env", "TAG=7\n");
    let project = folder.project().to_json();
    let db = &project["services"]["db"];
    assert_eq!((&db["image"], &db["user"]), (&json!("i:7"), &json!("u")));
    assert_eq!(db["environment"], json!({"A": "over", "B": "b", "FROM": "file"}));
    assert_eq!(db["ports"][0]["published"], "2");
    assert_eq!(db["volumes"][0]["source"], "/app/db/d");
    assert_eq!(project["services"]["web"]["image"], "i:7");
    assert!(project.get("x-gone").is_none());
}

#[test]
fn tags_hold_against_everything_that_is_included_or_extended() {
    let folder = Folder::with("include: [a.yaml, b.yaml]\nservices:\n  web: {image: i, environment: !override [OWN=1]}\n  last: {extends: {file: over.yaml, service: over}, volumes: ['/c:/c'], networks: !override [c], command: !reset null}\nnetworks: {c: {}}\n")
        .file("a.yaml", "services: {web: {environment: [A=1], user: a, labels: [l=a]}}\n")
        .file("b.yaml", "services: {web: {environment: [B=1], user: b, hostname: h}}\n")
        .file("over.yaml", "services: {over: {image: i, extends: {file: base.yaml, service: base}, volumes: !override ['/b:/b'], networks: !override [b], ulimits: {nofile: {soft: 3, hard: 4}}}}\n")
        .file("base.yaml", "services: {base: {command: x, volumes: ['/a:/a'], networks: [a], ulimits: {nofile: 1, nproc: 2}, tmpfs: ['/t:size=1']}}\n");
    let project = folder.project().to_json();
    let web = &project["services"]["web"];
    assert_eq!(web["environment"], json!({"OWN": "1"}));
    assert_eq!((&web["user"], &web["hostname"]), (&json!("a"), &json!("h")));
    let last = &project["services"]["last"];
    let targets: Vec<&Value> =
        last["volumes"].as_array().unwrap().iter().map(|mount| &mount["target"]).collect();
    assert_eq!(targets, ["/b", "/c"]);
    assert_eq!(last["networks"], json!({"c": null}));
    assert_eq!(last["command"], json!(null));
    assert_eq!(last["ulimits"], json!({"nofile": {"soft": 3, "hard": 4}, "nproc": 2}));
}

#[test]
fn of_one_thing_under_two_forms_the_last_counts() {
    let folder = web("tmpfs: ['/t:size=1m']\nnetworks: {default: {aliases: [a, b]}}\nbuild: {tags: ['t:1']}\ncap_add: [A]\ndevices: ['/dev/a:/dev/x']\nports: ['80:80/tcp']")
        .and("over.yaml", "services: {web: {tmpfs: ['/t:size=2m', /u], networks: {default: {aliases: [b, c]}}, build: {tags: ['t:1', 't:2']}, cap_add: [A, B], devices: ['/dev/b:/dev/x'], ports: ['0.0.0.0:80:80', '127.0.0.1:80:80']}}\n");
    let service = service(&folder);
    assert_eq!(service["tmpfs"], json!(["/t:size=2m", "/u"]));
    assert_eq!(service["networks"]["default"]["aliases"], json!(["a", "b", "c"]));
    assert_eq!(service["build"]["tags"], json!(["t:1", "t:2"]));
    assert_eq!(service["cap_add"], json!(["A", "B"]));
    assert_eq!(service["devices"].as_array().unwrap().len(), 1);
    assert_eq!(service["ports"].as_array().unwrap().len(), 2);
}

#[test]
fn merging_knows_variables_without_a_value_and_address_pools() {
    let folder = Folder::with("services: {web: {image: i, environment: {A: 1, B: 2}, labels: {l: 1}, logging: {options: {o: 1}}, depends_on: {db: {condition: service_healthy, required: false}}}, db: {image: i}}\nnetworks: {default: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1}, {subnet: 10.9.0.0/24}]}}}\n")
        .and("over.yaml", "services: {web: {environment: [A, C=3], labels: {l: }, logging: {options: {o: }}, depends_on: {db: {condition: service_started}}}}\nnetworks: {default: {ipam: {config: [{subnet: 10.0.0.0/24, ip_range: 10.0.0.0/25}]}}}\n");
    let project = folder.project().to_json();
    let service = &project["services"]["web"];
    assert_eq!(service["environment"], json!({"A": null, "B": "2", "C": "3"}));
    assert_eq!(service["labels"], json!({"l": ""}));
    assert_eq!(service["logging"], json!({"options": {"o": "1"}}));
    assert_eq!(service["depends_on"], json!({"db": {"condition": "service_started", "required": false}}));
    let pool = json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.1", "ip_range": "10.0.0.0/25"});
    assert_eq!(project["networks"]["default"]["ipam"]["config"], json!([pool]));
}

#[test]
fn services_are_selected_with_what_they_need() {
    let text = "services:\n  web: {build: ., depends_on: [db], profiles: [front], volumes: ['w:/w']}\n  db: {image: 'db:1', networks: [back]}\n  other: {image: o, profiles: [b, a], env_file: none.env}\nvolumes: {w: }\nnetworks: {back: }\n";
    let folder = Folder::with(text);
    let project = folder.project();
    assert_eq!((project.services(), project.images()), (vec!["db"], vec!["db:1".to_owned()]));
    assert_eq!((project.volumes(), project.networks()), (vec![], vec!["back"]));
    assert_eq!(project.profiles(), ["a", "b", "front"]);
    let mut folder = folder.profile("front");
    let mut project = folder.project();
    assert_eq!(project.images(), ["db:1", "app-web"]);
    assert_eq!(project.select(&["db", "nobody"]), ["nobody"]);
    assert_eq!((project.services(), project.volumes()), (vec!["db"], vec![]));
    // A service that is named is active, whatever its profiles; the others' files are not read.
    folder.request.profiles.clear();
    folder.request.services = vec!["web".to_owned()];
    assert_eq!(folder.project().services(), ["db", "web"]);
    folder.request.services = vec!["other".to_owned()];
    assert!(folder.projected().diagnostics[0].message.contains("none.env"));
    folder.request.services = vec!["oter".to_owned()];
    assert_eq!(folder.projected().diagnostics[0].message, "there is no service `oter`");
}

#[test]
fn a_hash_changes_with_what_a_container_is_made_from() {
    let hash = |lines: &str| web(lines).project().hash("web").unwrap();
    let plain = hash("");
    assert_eq!(plain.len(), 64);
    for same in ["scale: 3", "profiles: []", "pull_policy: always", "x-note: 1"] {
        assert_eq!(hash(same), plain, "{same}");
    }
    for other in ["command: x", "environment: {A: b}", "ports: ['1:1']"] {
        assert_ne!(hash(other), plain, "{other}");
    }
    assert_eq!(web("").project().hash("nobody"), None);
}

#[test]
fn short_forms_of_ports_and_volumes_are_those_of_the_reference() {
    let ports = |short: &str| {
        let service = service(&web(&format!("ports: ['{short}']")));
        let port = |port: &Value| {
            let text = |key: &str| port[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}/{}", text("host_ip"), text("published"), port["target"], text("protocol"))
        };
        service["ports"].as_array().unwrap().iter().map(port).collect::<Vec<_>>()
    };
    assert_eq!(ports("19-21:9-11"), ["- 20 10/tcp", "- 21 11/tcp", "- 19 9/tcp"]);
    assert_eq!(ports("8000-8002:80"), ["- 8000-8002 80/tcp"]);
    assert_eq!(ports("[::1]:80:81/UDP"), ["::1 80 81/udp"]);
    assert_eq!(ports("127.0.0.1::80"), ["127.0.0.1 - 80/tcp"]);
    for wrong in
        ["80:", "a.b:80:80", "65536:80", "80/xyz", "80-79", "+80:80", "1:2:3:4", "0x50:80", "1-2:1-3"]
    {
        assert!(web(&format!("ports: ['{wrong}']")).projected().project.is_none(), "{wrong}");
    }
    let volume = |short: &str| service(&web(&format!("volumes: ['{short}']")))["volumes"][0].clone();
    let bind = |source: &str| json!({"type": "bind", "source": source, "target": "/b", "bind": {}});
    assert_eq!(volume("/a/:/b/"), bind("/a/"));
    assert_eq!(volume("..:/b"), bind("/"));
    assert_eq!(volume("C:\\a:/b"), bind("C:\\a"));
    assert_eq!(volume("./a:/b:Z,rshared")["bind"], json!({"selinux": "Z", "propagation": "rshared"}));
    assert_eq!(volume("/b"), json!({"type": "volume", "target": "/b", "volume": {}}));
}

#[test]
fn braces_in_a_default_come_in_pairs() {
    let folder =
        web("labels: ['a=${A:-{\"x\": {}}}', 'b=${B:-{\"x\": 1}}', 'c=${C:-{}', 'd=${A:-${B:+{$A}}}']")
            .variable("B", "set");
    assert_eq!(service(&folder)["labels"], json!({"a": "{\"x\": {}}", "b": "set", "c": "{", "d": "{}"}));
}

#[test]
fn the_environment_is_what_interpolation_saw() {
    let folder = web("").variable("A", "1").file(".env", "A=2\nB=${A}3\n");
    let project = folder.project();
    let environment = project.environment();
    let get = |name: &str| environment.get(name).map(String::as_str);
    assert_eq!((get("A"), get("B"), get("COMPOSE_PROJECT_NAME")), (Some("1"), Some("13"), Some("app")));
    // `.env` may name the project.
    let folder = folder.file(".env", "COMPOSE_PROJECT_NAME=named\n");
    assert_eq!(folder.project().name(), "named");
}

#[test]
fn values_that_mean_nothing_are_refused_by_both() {
    for (lines, message) in [
        ("pull_policy: alwys", "`alwys` is not a pull policy"),
        ("pull_policy: every_h", "`every_h` is not a pull policy"),
        ("container_name: _", "`_` is not a name for a container"),
        ("ports: [{published: 80}]", "a port needs `target`"),
        ("volumes: [{type: tmpfs}]", "a volume of a service needs `target`"),
        ("gpus: [{count: some}]", "`count` must be a whole number or `all`, not `some`"),
        ("gpus: [{count: 1, device_ids: [a]}]", "`count` and `device_ids` exclude each other"),
        ("cpu_quota: 5x", "`5x` is not a duration"),
        (
            "deploy: {resources: {reservations: {generic_resources: [{kind: a}]}}}",
            "a generic resource is a `discrete_resource_spec` of `kind` and `value`",
        ),
        ("provider: {type: p, options: {a: {b: c}}}", "the option `a` must be a scalar or a list of scalars"),
        (
            "cpus: 1\ndeploy: {resources: {limits: {cpus: '2'}}}",
            "`cpus` and `deploy.resources.limits.cpus` say different things",
        ),
    ] {
        let folder = web(lines);
        let messages: Vec<String> = folder.projected().diagnostics.into_iter().map(|d| d.message).collect();
        assert_eq!(messages, [message], "{lines}");
        assert!(folder.load().app.is_none(), "{lines}");
    }
    for lines in [
        "pull_policy: every_1w2d",
        "pull_policy: daily",
        "container_name: a1",
        "cpu_rt_runtime: 400ms",
        "cpu_quota: -1",
    ] {
        assert_eq!(web(lines).projected().diagnostics, [], "{lines}");
    }
    assert_eq!(service(&web("cpu_rt_runtime: 400ms"))["cpu_rt_runtime"], 400_000);
}

#[test]
fn what_runs_elsewhere_and_jobs_are_printed_so_that_they_load_again() {
    let folder = Folder::with(
        "services:\n  web: {image: i, depends_on: [db]}\n  db:\n    external: {host: db.example.com, ports: [3306]}\njobs:\n  once: {image: i, networks: [back], volumes: ['data:/d']}\nnetworks: {back: }\nvolumes: {data: }\n",
    );
    let printed = folder.project().to_yaml();
    let again = Folder::with(&printed);
    assert_eq!(again.project().to_yaml(), printed);
    assert_eq!(
        (folder.project().networks(), folder.project().volumes()),
        (vec!["back", "default"], vec!["data"])
    );
    let [before, after] = [&folder, &again].map(|folder| {
        let mut folder = folder.clone();
        folder.request.allow_unsupported = true;
        folder.app().externals
    });
    assert_eq!(before, after);
    assert_eq!(before[&"db".parse().unwrap()].ports, [3306]);
}

#[test]
fn what_is_extended_from_another_file_is_merged_from_all_of_its_documents() {
    let folder = web("extends: {file: base.yaml, service: base}").file(
        "base.yaml",
        "services:\n  root: {user: a}\n  base: {extends: root, tty: true, environment: {A: one, B: one}}\n---\nx-note: nothing\n---\nservices:\n  base: {environment: {B: two}, init: true}\n",
    );
    let web = service(&folder);
    assert_eq!((&web["tty"], &web["init"], &web["user"]), (&json!(true), &json!(true), &json!("a")));
    assert_eq!(web["environment"], json!({"A": "one", "B": "two"}));
}

/// Loading looks at a file in two ways, which must not complain about the same thing at two places.
#[test]
fn one_problem_is_told_once_and_says_what_to_write() {
    let mut wrong = Vec::new();
    for (lines, rest) in [
        ("network_mode: host\nnetworks:\n  back:\n", "networks: {back: }"),
        ("networks:\n  back:\n", ""),
        ("depends_on:\n  - nobody\n", ""),
        ("depends_on:\n  - other\n", ""),
        ("volumes:\n  - data:/d\n", ""),
        ("volumes:\n  - type: bind\n    target: /d\n", ""),
        ("volumes:\n  - type: bind\n    source: ''\n    target: /d\n", ""),
        ("volumes:\n  - /tmp:/d\ntmpfs:\n  - /d\n", ""),
        ("volumes:\n  - type: volume\n    source: /d\n    target: x\n", ""),
        ("secrets:\n  - token\n", ""),
        ("secrets:\n  - token\n", "secrets:\n  token:\n    content: x\n    file: y\n"),
        ("secrets:\n  - token\n", "secrets:\n  token:\n    labels: {a: b}\n"),
        ("configs:\n  - token\n", "configs:\n  token:\n    environment: A\n    content: y\n"),
        (
            "volumes:\n  - data:/d\n",
            "volumes:\n  data:\n    labels: {a: b}\n    external: true\n    driver: local\n",
        ),
        ("ports:\n  - target: 80\n    host_ip: x\n", ""),
        ("ports:\n  - published: 80\n", ""),
        ("ports:\n  - 9-8:80\n", ""),
        ("healthcheck:\n  test:\n    - curl\n", ""),
        ("scale: 2\ndeploy:\n  replicas: 3\n", ""),
        ("scale: -1\n", ""),
        ("deploy:\n  replicas: two\n", ""),
        ("container_name: named\ndeploy:\n  replicas: 3\n", ""),
        ("mem_limit: 12Q\n", ""),
        ("mem_limit: 1g\ndeploy:\n  resources:\n    limits:\n      memory: 2g\n", ""),
        ("stop_grace_period: -1s\n", ""),
        ("gpus:\n  - count: 1\n    device_ids: [a]\n", ""),
        ("build:\n  dockerfile: a\n  dockerfile_inline: b\n", ""),
        ("platform: linux/arm64\nbuild:\n  platforms:\n    - linux/amd64\n", ""),
        ("pull_policy: alwys\n", ""),
        ("container_name: _\n", ""),
        ("ulimits:\n  nonsense: 3\n", ""),
        ("zzz: 1\n", ""),
        ("privileged: perhaps\n", ""),
    ] {
        let mut text = "services:\n  other: {image: i, profiles: [never]}\n  web:\n    image: i\n".to_owned();
        text.extend(lines.lines().map(|line| format!("    {line}\n")));
        text.push_str(rest);
        let folder = Folder::with(&text);
        for diagnostics in [folder.load().diagnostics, folder.projected().diagnostics] {
            let errors: Vec<_> = diagnostics.iter().filter(|found| found.is_error()).collect();
            let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
            if errors.len() > 1 || errors.iter().any(|error| error.hint.is_none()) {
                wrong.push(format!("{text}{}", told.join("\n")));
            }
        }
        if folder.load().app.is_some() {
            wrong.push(format!("{text}is accepted"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
