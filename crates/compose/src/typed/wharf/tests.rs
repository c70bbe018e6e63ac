//! That every setting reaches the model, whether the cluster carries it out or not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use wharf_model::*;

use super::{NOT_CARRIED_OUT, Setting};
use crate::{Complaint, Loaded, Request, load};

thread_local! {
    static ALL: Cell<bool> = const { Cell::new(false) };
}
pub(super) fn as_if_all_were_carried_out() -> bool {
    ALL.get()
}

pub(crate) fn read(text: &str) -> Loaded {
    let files: BTreeMap<PathBuf, Vec<u8>> =
        [("/a/c.yaml".into(), text.into()), ("/a/pem".into(), b"pem".to_vec())].into();
    let request = Request { files: vec!["/a/c.yaml".into()], ..Request::default() };
    load(&request, &files)
}

/// The app as if the cluster carried everything out, and what was said of the file.
pub(crate) fn everything(text: &str) -> (AppSpec, Vec<crate::Diagnostic>) {
    ALL.set(true);
    let loaded = read(text);
    ALL.set(false);
    loaded.into_result().unwrap_or_else(|refused| panic!("{refused}"))
}

fn policy(app: &AppSpec) -> &ServicePolicy {
    &app.services[&"web".parse::<ServiceName>().unwrap()].policy
}

const ROUTES: &str = r#"
name: shop
services:
  web:
    image: i
    expose: [8080, 5432]
    x-wharf:
      routes:
        - host: [Shop.example.com, "*.shop.example.com"]
          port: 8080
          path: /api
          methods: [get, POST]
          headers: {X-Canary: "1"}
          tls: {certificate: cert}
          weight: 30
          balance: hash
          hash_by: "header:X-User"
          sticky: {cookie: id, max_age: 1h}
          timeouts: {connect: 1s, request: 30s, idle: 1m}
          retries: 2
          rate_limit: {requests: 100, per: 1m, by: client}
          concurrency: {requests: 50, queue: 10}
          breaker: {failures: 3}
          basic_auth: {secret: users}
          allow: [10.0.0.0/8, 192.0.2.7]
          deny: [10.9.0.0/16]
          mirror: {service: shadow, percent: 10}
          fallback: {status: 503, body: back soon}
        - {protocol: tcp, port: 5432, listen: 15432, proxy_protocol: both}
  shadow: {image: i}
secrets:
  cert: {file: pem}
  users: {file: pem}
"#;

const SETTINGS: &str = r#"
name: shop
x-wharf:
  release: {strategy: blue-green, preview: next.example.com, keep: 1h, promote: manual}
  priority: high
  hooks: {before: [{service: web, command: migrate up}]}
services:
  web:
    image: i
    deploy: {replicas: 3}
    x-wharf:
      release:
        strategy: canary
        steps: [5, {weight: 50, hold: 10m}]
        judge: {errors_percent: 0.5, latency_percent: 120}
      autoscale:
        min: 2
        max: 20
        metrics: {cpu: 60, network_in: {above: 10m, below: 1m}}
        step: 2
      logs: {access: {from: "/var/log/nginx/*.log", keep: 30d, format: json}, out: }
      priority: low
      drain: 90s
      affinity: [{apart: web}, {near: db, scope: node.labels.zone, soft: true}, {near_image: "redis:7"}]
      availability: {at_least: 3}
      strategy: binpack
      pool: front
      tolerations: [gpu, team=blue]
      slots: {elsewhere: 2}
      disk: 2g
      gpu: {share: 0.5, model: [T4, A10], memory: 16g}
  db: {image: i}
jobs:
  nightly: {image: i, command: [run], triggers: {schedule: "30  4 * * 1-5"}, depends_on: [db]}
"#;

/// Files with every setting there is, for others to check.
pub(crate) fn texts() -> [&'static str; 2] {
    [ROUTES, SETTINGS]
}

#[test]
fn routes_are_read_whole() {
    let (app, _) = everything(ROUTES);
    let [api, database] = policy(&app).routes.as_slice() else { panic!("two routes") };
    assert_eq!(api.hosts, ["shop.example.com", "*.shop.example.com"]);
    assert_eq!((api.path.as_deref(), api.port, api.listen), (Some("/api"), 8080, None));
    assert_eq!(api.methods, ["GET", "POST"]);
    assert_eq!(api.headers, BTreeMap::from([("x-canary".to_owned(), "1".to_owned())]));
    assert_eq!((&api.tls, api.redirect), (&RouteTls::Certificate("cert".into()), true));
    assert_eq!((api.weight, &api.balance), (Some(30), &Balance::Hash(HashBy::Header("x-user".into()))));
    assert_eq!(api.sticky, Some(Sticky { cookie: "id".into(), max_age: Millis::from_secs(3600) }));
    assert_eq!(api.timeouts.request, Some(Millis::from_secs(30)));
    assert_eq!(api.retries, Some(Retries { attempts: 2, budget_percent: 20 }));
    let limit = api.rate_limit.as_ref().unwrap();
    assert_eq!((limit.requests, limit.per, limit.burst), (100, Millis::from_secs(60), 100));
    assert_eq!(api.concurrency.as_ref().map(|limit| (limit.requests, limit.queue)), Some((50, 10)));
    assert_eq!(api.breaker.as_ref().map(|breaker| (breaker.failures, breaker.most_percent)), Some((3, 50)));
    assert_eq!(api.allow, ["10.0.0.0/8".parse().unwrap(), "192.0.2.7/32".parse().unwrap()]);
    assert_eq!(api.deny, ["10.9.0.0/16".parse().unwrap()]);
    let mirror = Mirror { service: "shadow".parse().unwrap(), port: 8080, percent: 10 };
    assert_eq!(api.mirror, Some(mirror));
    assert!(matches!(&api.fallback, Some(Fallback::Answer { status: 503, body, .. }) if body == "back soon"));
    assert_eq!((database.protocol, database.listen), (RouteProtocol::Tcp, Some(15432)));
    assert_eq!(database.proxy_protocol, ProxyProtocol::Both);
    // What routes need travels with the release.
    assert_eq!(app.secrets.keys().collect::<Vec<_>>(), ["cert", "users"]);
}

#[test]
fn the_other_settings_are_read_whole() {
    let (app, _) = everything(SETTINGS);
    assert!(
        matches!(&app.policy.release, Some(ReleaseStrategy::BlueGreen { preview: Some(host), promote: Promote::Manual, keep })
        if host == "next.example.com" && *keep == Millis::from_secs(3600))
    );
    assert_eq!(app.policy.priority, Priority::High);
    assert_eq!(app.policy.hooks.before[0].command, ["/bin/sh", "-c", "migrate up"]);
    let web = policy(&app);
    let Some(ReleaseStrategy::Canary { steps, judge, promote: Promote::Auto }) = &web.release else {
        panic!("{:?}", web.release);
    };
    let ten_minutes = Millis::from_secs(600);
    assert_eq!(steps[0], CanaryStep { weight: 5, hold: Millis::from_secs(60) });
    assert_eq!(steps[1], CanaryStep { weight: 50, hold: ten_minutes });
    assert_eq!((judge.errors_permille, judge.latency_percent, judge.requests), (5, 120, 100));
    let autoscale = web.autoscale.as_ref().unwrap();
    assert_eq!((autoscale.min, autoscale.max, autoscale.step), (2, 20, 2));
    assert_eq!(autoscale.metrics[&Metric::Cpu], Bounds::Target { value: 60 });
    let range = Bounds::Range { above: Some(10 << 20), below: Some(1 << 20) };
    assert_eq!(autoscale.metrics[&Metric::NetworkIn], range);
    assert_eq!(web.logs["access"].from, LogSource::Files("/var/log/nginx/*.log".into()));
    assert_eq!(web.logs["access"].keep, Some(Millis::from_secs(30 * 86_400)));
    assert_eq!(web.logs["out"].from, LogSource::Stdout);
    assert_eq!(web.priority, Some(Priority::Low));
    assert_eq!(web.drain, Some(Millis::from_secs(90)));
    let db: ServiceName = "db".parse().unwrap();
    assert_eq!(web.affinity[0].to, Neighbour::Apart("web".parse().unwrap()));
    assert_eq!(web.affinity[1].to, Neighbour::Near(db.clone()));
    assert_eq!((web.affinity[1].scope.as_str(), web.affinity[1].soft), ("node.labels.zone", true));
    assert_eq!(web.affinity[2].to, Neighbour::NearImage("redis:7".into()));
    let minimum = AvailabilityMinimum { over: "node.labels.zone".into(), at_least: 3, soft: false };
    assert_eq!(web.availability, Some(minimum));
    assert_eq!((web.strategy, web.pool.as_deref()), (Some(PlacementStrategy::Binpack), Some("front")));
    let borne: Vec<_> = web.tolerations.iter().map(ToString::to_string).collect();
    assert_eq!(borne, ["gpu", "team=blue"]);
    assert_eq!(web.slots, Some(StableSlots { stay: true, elsewhere: 2 }));
    assert_eq!(web.disk, Some(Bytes(2 << 30)));
    let gpu = app.services[&"web".parse::<ServiceName>().unwrap()].resources.gpu.as_ref().unwrap();
    assert_eq!((gpu.share, gpu.count, gpu.memory), (Some(500), None, Some(Bytes(16 << 30))));
    assert_eq!(gpu.models, ["T4", "A10"]);
    let job = &app.jobs[&"nightly".parse::<ServiceName>().unwrap()];
    assert_eq!((job.schedule.as_deref(), job.manual), (Some("30 4 * * 1-5"), true));
    assert!(job.spec.depends_on.contains_key(&db));
    assert_eq!(job.spec.restart.condition, RestartCondition::None);
}

/// A setting for each line of the table, alone.
fn sample(setting: Setting) -> &'static str {
    match setting {
        Setting::Autoscale => "services: {web: {image: i, x-wharf: {autoscale: {metrics: {cpu: 60}}}}}",
        Setting::Logs => "services: {web: {image: i, x-wharf: {logs: {out: }}}}",
        Setting::Jobs => "services: {web: {image: i}}\njobs: {once: {image: i}}",
    }
}

#[test]
fn a_task_has_a_part_of_one_gpu_or_whole_ones() {
    let file = |gpu: &str| format!("name: shop\nservices: {{web: {{image: i, x-wharf: {{gpu: {gpu}}}}}}}");
    for (gpu, share, count) in [
        ("0.5", Some(500), None),
        ("0.001", Some(1), None),
        ("1", None, Some(1)),
        ("4.0", None, Some(4)),
        ("{model: T4}", None, None),
    ] {
        let (app, _) = everything(&file(gpu));
        let wish = app.services.values().next().unwrap().resources.gpu.clone().unwrap();
        assert_eq!((wish.share, wish.count), (share, count), "{gpu}");
    }
    for gpu in ["0", "1.5", "-1", "0.0004", "5000", "{share: 2.5}"] {
        let loaded = read(&file(gpu));
        let [complaint] = loaded.diagnostics.as_slice() else { panic!("{gpu}: {:?}", loaded.diagnostics) };
        assert!(complaint.message.contains("a part of one GPU, or whole ones"), "{}", complaint.message);
    }
}

#[test]
fn a_task_drains_for_an_hour_at_most() {
    let file =
        |drain: &str| format!("name: shop\nservices: {{web: {{image: i, x-wharf: {{drain: {drain}}}}}}}");
    for (drain, read_as) in [("0s", 0), ("30s", 30), ("1h", 3600)] {
        let (app, _) = everything(&file(drain));
        assert_eq!(policy(&app).drain, Some(Millis::from_secs(read_as)));
    }
    for drain in ["61m", "2h"] {
        let loaded = read(&file(drain));
        let [complaint] = loaded.diagnostics.as_slice() else { panic!("{:?}", loaded.diagnostics) };
        assert_eq!(complaint.complaint, Complaint::InvalidValue);
        assert!(complaint.message.contains("1 hour at most"), "{}", complaint.message);
    }
}

#[test]
fn what_is_not_carried_out_is_unsupported_and_left_out() {
    for (setting, instead) in NOT_CARRIED_OUT {
        let text = format!("name: shop\n{}", sample(*setting));
        let loaded = read(&text);
        let [complaint] = loaded.diagnostics.as_slice() else {
            panic!("{setting:?}: {:?}", loaded.diagnostics);
        };
        assert_eq!(complaint.complaint, Complaint::Unsupported, "{setting:?}");
        assert!(complaint.message.ends_with("is not carried out by this version"), "{}", complaint.message);
        assert_eq!(complaint.hint.as_deref(), Some(*instead));
        assert!(loaded.app.is_none());
        let (whole, _) = everything(&text);
        let request =
            Request { files: vec!["/a/c.yaml".into()], allow_unsupported: true, ..Request::default() };
        let files: BTreeMap<PathBuf, Vec<u8>> = [("/a/c.yaml".into(), text.into_bytes())].into();
        let without = load(&request, &files).app.unwrap();
        assert_ne!(whole, without, "{setting:?} reaches the model once it is carried out");
        assert_eq!((&without.policy, policy(&without)), (&AppPolicy::default(), &ServicePolicy::default()));
        assert!(without.jobs.is_empty());
    }
}
