//! That old words mean what their notes say: the modern form, put in their place, makes the same app.

use wharf_model::{AppSpec, Mode, PullPolicy, ServiceName};

use crate::typed::wharf_tests::{everything, read};
use crate::{Complaint, Diagnostic};

fn file(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!("name: shop\nservices:\n  web:\n    image: i\n{lines}  db: {{image: i}}\n  cache: {{image: i}}\n")
}

fn label(text: &str) -> String {
    file(&format!("labels:\n  {text}"))
}

fn variable(text: &str) -> String {
    file(&format!("environment:\n  - \"{text}\""))
}

/// The modern forms that notes show.
fn modern(diagnostics: &[Diagnostic]) -> Vec<String> {
    let notes = diagnostics.iter().filter(|found| found.complaint == Complaint::Note);
    let form = |message: &str| Some(message.split_once("` is taken as `")?.1.strip_suffix('`')?.to_owned());
    notes.filter_map(|note| form(&note.message)).collect()
}

#[test]
fn what_a_note_shows_means_what_the_label_means() {
    let labels = [
        "aliyun.scale: \"3\"",
        "aliyun.scale: 3",
        "aliyun.global: \"true\"",
        "aliyun.depends: db,cache",
        "aliyun.latest_image: true",
        "aliyun.rolling_updates: \"false\"",
        "aliyun.rolling_updates.parallelism: \"2\"",
        "aliyun.probe.url: http://container/",
        "aliyun.probe.url: http://container:8080/health/live?full=1",
        "aliyun.probe.url: tcp://container:6379",
        "aliyun.probe.cmd: \"pgrep 'nginx: master'\"",
        "aliyun.routing.port_80: shop",
        "aliyun.routing.port_80: http://shop.example.com/api",
        "aliyun.routing.port_8080: https://shop.example.com",
        "aliyun.lb.port_80: tcp://balancer:8080",
        "aliyun.lb.port_53: udp://balancer:53",
        "aliyun.lb.port_80: http://balancer",
        "aliyun.gpu: \"1\"",
        "aliyun.log_store_access: stdout",
        "aliyun.log_store_Access: /var/log/nginx/*.log",
        "aliyun.auto_scaling.max_cpu: 70",
        "aliyun.auto_scaling.max_internetInRate: 1000000",
    ];
    let variables = [
        "constraint:group==1",
        "constraint:node!=n1",
        "affinity:service==db",
        "affinity:service!=web",
        "affinity:service!=~web",
        "affinity:image==~redis",
    ];
    let labels = labels.into_iter().map(|text| (text, label(text)));
    for (text, old) in labels.chain(variables.into_iter().map(|text| (text, variable(text)))) {
        let (app, diagnostics) = everything(&old);
        let [form] = modern(&diagnostics).try_into().unwrap_or_else(|_| panic!("{text}: {diagnostics:?}"));
        let (wanted, notes) = everything(&file(&form));
        assert_eq!(app, wanted, "{text} -> {form}");
        assert!(modern(&notes).is_empty());
        assert_ne!(app, everything(&file("")).0, "{text} has an effect");
    }
}

/// The service of the app that these lines make.
fn made(lines: &str) -> (wharf_model::ServiceSpec, AppSpec, Vec<Diagnostic>) {
    let (app, diagnostics) = everything(&file(lines));
    let web = app.services[&"web".parse::<ServiceName>().unwrap()].clone();
    (web, app, diagnostics)
}

#[test]
fn what_labels_say_together_becomes_one_setting() {
    let (old, _, diagnostics) = made(
        r#"labels:
  com.example.team: shop
  aliyun.scale: "3"
  aliyun.latest_image: "true"
  aliyun.rolling_updates: "true"
  aliyun.probe.url: http://container:8080/up
  aliyun.probe.timeout_seconds: "30"
  aliyun.probe.initial_delay_seconds: "10"
  aliyun.routing.port_8080: "shop.example.com/a;https://b.example.com"
  aliyun.routing.session_sticky: "true"
  aliyun.auto_scaling.max_cpu: "70"
  aliyun.auto_scaling.min_cpu: "30"
  aliyun.auto_scaling.step: "2"
  aliyun.auto_scaling.min_instances: "2"
  aliyun.auto_scaling.max_instances: "9"
  aliyun.log_store_out: stdout
  aliyun.log_ttl_out: "30"
environment:
  - LEVEL=info
  - availability:az==~3
  - constraint:disk!=(hdd|tape)
  - reschedule:on-node-failure"#,
    );
    let (new, ..) = made(
        r#"labels: {com.example.team: shop}
pull_policy: always
environment: [LEVEL=info]
deploy:
  replicas: 3
  placement: {constraints: [node.labels.disk != hdd, node.labels.disk != tape]}
x-wharf:
  probe: {http: {port: 8080, path: /up}, timeout: 30s, start_period: 10s}
  routes:
    - {host: shop.example.com, path: /a, port: 8080, sticky: true}
    - {host: b.example.com, port: 8080, tls: auto, sticky: true}
  autoscale: {metrics: {cpu: {above: 70, below: 30}}, min: 2, max: 9, step: 2}
  logs: {out: {from: stdout, keep: 30d}}
  availability: {at_least: 3, soft: true}"#,
    );
    assert_eq!(old, new);
    assert_eq!((old.mode, old.pull_policy), (Mode::Replicated { replicas: 3 }, PullPolicy::Always));
    // Neither labels nor directives reach the container.
    assert_eq!(old.container.labels.keys().collect::<Vec<_>>(), ["com.example.team"]);
    assert_eq!(old.container.environment.keys().collect::<Vec<_>>(), ["LEVEL"]);
    assert!(diagnostics.iter().all(|found| !found.is_error() && found.place.is_some()), "{diagnostics:?}");
}

/// What is said of old words: each complaint's message and what to write instead.
fn said(text: &str) -> String {
    let lines: Vec<String> = read(text)
        .diagnostics
        .iter()
        .map(|found| format!("{} [{}]", found.message, found.hint.as_deref().unwrap_or_default()))
        .collect();
    lines.join("\n")
}

#[test]
fn malformed_and_unknown_words_are_errors() {
    let labels = [
        (
            "aliyun.scale: many",
            "`aliyun.scale` is `many`: it must be a whole number of 0 to 10000 [write for example `2`]",
        ),
        (
            "aliyun.scale: \"-1\"",
            "`aliyun.scale` is `-1`: it must be a whole number of 0 to 10000 [write for example `2`]",
        ),
        (
            "aliyun.global: perhaps",
            "`aliyun.global` is `perhaps`: it must be `true` or `false` [write one of the two]",
        ),
        ("aliyun.scal: 3", "`aliyun.scal` is not a label that is known [did you mean `aliyun.scale`?]"),
        (
            "aliyun.auto.scaling.max_cpu: 70",
            "`aliyun.auto.scaling.max_cpu` is not a label that is known [did you mean `aliyun.auto_scaling.max_cpu`?]",
        ),
        (
            "aliyun.proxy.VIRTUAL_HOST: a.example.com",
            "`aliyun.proxy.VIRTUAL_HOST` has no equivalent [write `x-wharf: {routes: [{host: …}]}`]",
        ),
        (
            "aliyun.probe.url: http://web/up",
            "`aliyun.probe.url` is `http://web/up`: a probe asks the container itself, which is called `container` \
             [write `http://container:PORT/PATH` or `tcp://container:PORT`]",
        ),
        (
            "aliyun.probe.url: tcp://container",
            "`aliyun.probe.url` is `tcp://container`: there is no port of 1 to 65535 \
             [write `http://container:PORT/PATH` or `tcp://container:PORT`]",
        ),
        (
            "aliyun.probe.timeout_seconds: 3",
            "`aliyun.probe.timeout_seconds` has no effect without `aliyun.probe.url` or `aliyun.probe.cmd` [remove it]",
        ),
        (
            "aliyun.routing.port_0: a",
            "`aliyun.routing.port_0` is `a`: its name ends in no port of 1 to 65535 [write for example `aliyun.routing.port_80`]",
        ),
        (
            "aliyun.lb.port_80: balancer:80",
            "`aliyun.lb.port_80` is `balancer:80`: there is no scheme [write `tcp://BALANCER:PORT`]",
        ),
        (
            "aliyun.log_ttl_out: 3",
            "`aliyun.log_ttl_out` has no effect without `aliyun.log_store_out` [remove it]",
        ),
        (
            "aliyun.depends: database",
            "`aliyun.depends` is taken as `depends_on: [database]` [write that in place of the label]\n\
             there is no service `database` [name one of those under `services`, or add it there]",
        ),
    ];
    for (text, wanted) in labels {
        assert_eq!(said(&label(text)), wanted, "{text}");
    }
    let variables = [
        (
            "availability:az==many",
            "`availability:az==many`: `many` is not a number of zones \
             [write `availability:az==3`, or `availability:az==~3` as a wish]",
        ),
        (
            "constraint:group",
            "`constraint:group`: it compares nothing with `==` or `!=` [write for example `constraint:disk==ssd`]",
        ),
        (
            "affinity:container==nginx-*",
            "`affinity:container==nginx-*` names containers, which come and go \
             [write `x-wharf: {affinity: [{near: SERVICE}]}` or `apart`]",
        ),
        (
            "constraint:disk==(a|b)",
            "`constraint:disk==(a|b)` accepts one of several values \
             [give those nodes a label in common, and constrain that]",
        ),
        ("reschedule:never", "`reschedule:never`: there is `on-node-failure` only [remove it]"),
    ];
    for (text, wanted) in variables {
        assert_eq!(said(&variable(text)), wanted, "{text}");
    }
}

#[test]
fn what_old_and_new_words_say_must_agree() {
    let both = |replicas| file(&format!("labels: {{aliyun.scale: \"3\"}}\ndeploy: {{replicas: {replicas}}}"));
    assert_eq!(
        said(&both(5)),
        "`aliyun.scale` says `3`, and `deploy.replicas` says `5` [keep `deploy.replicas`, and remove the label]"
    );
    assert_eq!(modern(&everything(&both(3)).1), ["deploy: {replicas: 3}"]);
    let probes = file("labels: {aliyun.probe.url: \"http://container/\", aliyun.probe.cmd: \"true\"}");
    assert!(said(&probes).starts_with("`aliyun.probe.url` and `aliyun.probe.cmd` exclude each other"));
}

#[test]
fn the_normal_form_has_the_labels_as_they_are_written() {
    let text = file("labels: {aliyun.scale: \"3\"}\nenvironment: [\"availability:az==3\"]");
    let files: std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> =
        [("/a/c.yaml".into(), text.into_bytes())].into();
    let request = crate::Request { files: vec!["/a/c.yaml".into()], ..crate::Request::default() };
    let (project, complaints) = crate::project(&request, &files).into_result().unwrap();
    let web = &project.to_json()["services"]["web"];
    assert_eq!(web["labels"]["aliyun.scale"], "3");
    assert_eq!(web["environment"]["availability:az"], "=3");
    assert!(web.get("deploy").is_none() && complaints.is_empty());
}

#[test]
fn variables_may_be_a_mapping_and_services_that_are_not_active_are_left_alone() {
    let mapping = file("environment:\n  \"constraint:group==1\": \"\"");
    assert_eq!(
        modern(&everything(&mapping).1),
        ["deploy: {placement: {constraints: [\"node.labels.group == 1\"]}}"]
    );
    let inactive = file("profiles: [old]\nlabels: {aliyun.scale: many}");
    assert_eq!(said(&inactive), "");
}
