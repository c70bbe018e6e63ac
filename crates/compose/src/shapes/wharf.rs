//! The shapes of `x-wharf`: Wharf's own keys, in services and at the top level of a file.
//!
//! `typed/wharf.rs` gives them their meaning; the JSON Schema for editors is made from them.

use super::{TEXT_OR_TEXTS, TEXTS};
use crate::shape::Object;
use crate::shape::Shape::{
    self, Bool, Duration, Either, Int, List, Map, MapOf, Named, Number, OrNull, Size, Text, TextOrNumber,
    Word,
};

/// `x-wharf` of a service.
pub(crate) static WHARF: Object = Object {
    what: "`x-wharf`",
    keys: &[
        ("probe", Map(&PROBE)),
        ("routes", List(&Map(&ROUTE))),
        ("release", Map(&STRATEGY)),
        ("drain", Duration),
        ("single_writer", Bool),
        ("autoscale", Map(&AUTOSCALE)),
        ("logs", Named("a log stream", &OrNull(&Map(&LOG_STREAM)))),
        ("priority", PRIORITY),
        ("affinity", List(&Map(&AFFINITY))),
        ("availability", Map(&AVAILABILITY)),
        ("strategy", Word(&["spread", "binpack", "random"])),
        ("pool", Text),
        ("tolerations", TEXTS),
        ("slots", Map(&SLOTS)),
        ("disk", Size),
        ("gpu", Either(&[Number, Map(&GPU_SHARE)])),
        ("external", Map(&OUTSIDE)),
    ],
    required: &[],
};

/// `x-wharf` of a file.
pub(crate) static WHARF_APP: Object = Object {
    what: "`x-wharf` of a file",
    keys: &[("release", Map(&STRATEGY)), ("priority", PRIORITY), ("hooks", Map(&HOOKS))],
    required: &[],
};

/// `x-wharf` of a network.
pub(crate) static WHARF_NETWORK: Object =
    Object { what: "`x-wharf` of a network", keys: &[("backend", BACKEND), ("parent", Text)], required: &[] };

const BACKEND: Shape = Word(&["vxlan", "routed", "wireguard", "macvlan", "host"]);
const PRIORITY: Shape = Word(&["system", "high", "normal", "low"]);

pub(crate) static PROBE: Object = Object {
    what: "a probe",
    keys: &[
        ("http", Map(&PROBE_HTTP)),
        ("tcp", Map(&PROBE_TCP)),
        ("grpc", Map(&PROBE_GRPC)),
        ("exec", Map(&PROBE_EXEC)),
        ("interval", Duration),
        ("timeout", Duration),
        ("retries", Int),
        ("start_period", Duration),
    ],
    required: &[],
};
pub(crate) static PROBE_HTTP: Object =
    Object { what: "an HTTP probe", keys: &[("port", Int), ("path", Text)], required: &["port"] };
pub(crate) static PROBE_TCP: Object =
    Object { what: "a TCP probe", keys: &[("port", Int)], required: &["port"] };
pub(crate) static PROBE_GRPC: Object =
    Object { what: "a gRPC probe", keys: &[("port", Int), ("service", Text)], required: &["port"] };
pub(crate) static PROBE_EXEC: Object =
    Object { what: "an exec probe", keys: &[("command", TEXT_OR_TEXTS)], required: &["command"] };

pub(crate) static ROUTE: Object = Object {
    what: "a route",
    keys: &[
        ("protocol", Word(&["http", "h2c", "tcp", "udp"])),
        ("host", TEXT_OR_TEXTS),
        ("path", Text),
        ("methods", TEXTS),
        ("headers", MapOf(&TextOrNumber)),
        ("port", Int),
        ("listen", Int),
        ("tls", Either(&[Word(&["off", "auto", "passthrough"]), Bool, Map(&TLS)])),
        ("redirect", Bool),
        ("weight", Int),
        ("balance", Word(&["least-outstanding", "round-robin", "hash"])),
        ("hash_by", Text),
        ("sticky", Either(&[Bool, Map(&STICKY)])),
        ("timeouts", Map(&TIMEOUTS)),
        ("retries", Either(&[Int, Map(&RETRIES)])),
        ("rate_limit", Map(&RATE_LIMIT)),
        ("concurrency", Map(&CONCURRENCY)),
        ("breaker", Map(&BREAKER)),
        ("basic_auth", Map(&BASIC_AUTH)),
        ("allow", TEXTS),
        ("deny", TEXTS),
        ("mirror", Map(&MIRROR)),
        ("fallback", Map(&FALLBACK)),
        ("proxy_protocol", Word(&["off", "in", "out", "both"])),
    ],
    required: &[],
};
pub(crate) static TLS: Object =
    Object { what: "`tls`", keys: &[("certificate", Text)], required: &["certificate"] };
pub(crate) static STICKY: Object =
    Object { what: "`sticky`", keys: &[("cookie", Text), ("max_age", Duration)], required: &[] };
pub(crate) static TIMEOUTS: Object = Object {
    what: "`timeouts`",
    keys: &[("connect", Duration), ("request", Duration), ("idle", Duration)],
    required: &[],
};
pub(crate) static RETRIES: Object =
    Object { what: "`retries`", keys: &[("attempts", Int), ("budget_percent", Int)], required: &[] };
pub(crate) static RATE_LIMIT: Object = Object {
    what: "`rate_limit`",
    keys: &[("requests", Int), ("per", Duration), ("burst", Int), ("by", Text)],
    required: &["requests"],
};
pub(crate) static CONCURRENCY: Object = Object {
    what: "`concurrency`",
    keys: &[("requests", Int), ("queue", Int), ("wait", Duration)],
    required: &["requests"],
};
pub(crate) static BREAKER: Object = Object {
    what: "`breaker`",
    keys: &[("failures", Int), ("open", Duration), ("most_percent", Int)],
    required: &[],
};
pub(crate) static BASIC_AUTH: Object =
    Object { what: "`basic_auth`", keys: &[("secret", Text), ("realm", Text)], required: &["secret"] };
pub(crate) static MIRROR: Object = Object {
    what: "`mirror`",
    keys: &[("service", Text), ("port", Int), ("percent", Int)],
    required: &["service"],
};
pub(crate) static FALLBACK: Object = Object {
    what: "`fallback`",
    keys: &[("service", Text), ("port", Int), ("status", Int), ("body", Text), ("content_type", Text)],
    required: &[],
};

pub(crate) static STRATEGY: Object = Object {
    what: "`release`",
    keys: &[
        ("strategy", Word(&["rolling", "blue-green", "canary"])),
        ("preview", Text),
        ("keep", Duration),
        ("promote", Word(&["auto", "manual"])),
        ("steps", List(&Either(&[Int, Map(&STEP)]))),
        ("judge", Map(&JUDGE)),
    ],
    required: &["strategy"],
};
pub(crate) static STEP: Object =
    Object { what: "a step", keys: &[("weight", Int), ("hold", Duration)], required: &["weight"] };
pub(crate) static JUDGE: Object = Object {
    what: "`judge`",
    keys: &[("errors_percent", Number), ("latency_percent", Int), ("requests", Int)],
    required: &[],
};
pub(crate) static HOOKS: Object = Object {
    what: "`hooks`",
    keys: &[("before", List(&Map(&RELEASE_HOOK))), ("after", List(&Map(&RELEASE_HOOK)))],
    required: &[],
};
pub(crate) static RELEASE_HOOK: Object = Object {
    what: "a release's hook",
    keys: &[("service", Text), ("command", TEXT_OR_TEXTS), ("timeout", Duration)],
    required: &["service", "command"],
};

pub(crate) static AUTOSCALE: Object = Object {
    what: "`autoscale`",
    keys: &[
        ("min", Int),
        ("max", Int),
        ("metrics", Map(&METRICS)),
        ("step", Int),
        ("window", Duration),
        ("cool_down", Duration),
    ],
    required: &["metrics"],
};
pub(crate) static METRICS: Object = Object {
    what: "`metrics`",
    keys: &[
        ("cpu", METRIC),
        ("memory", METRIC),
        ("network_in", METRIC),
        ("network_out", METRIC),
        ("requests", METRIC),
        ("latency", METRIC),
    ],
    required: &[],
};
const METRIC: Shape = Either(&[Size, Map(&BOUNDS)]);
pub(crate) static BOUNDS: Object =
    Object { what: "a metric", keys: &[("target", Size), ("above", Size), ("below", Size)], required: &[] };

pub(crate) static LOG_STREAM: Object = Object {
    what: "a log stream",
    keys: &[("from", Text), ("keep", Duration), ("format", Word(&["text", "json"]))],
    required: &[],
};
pub(crate) static AFFINITY: Object = Object {
    what: "an affinity",
    keys: &[("near", Text), ("apart", Text), ("near_image", Text), ("scope", Text), ("soft", Bool)],
    required: &[],
};
pub(crate) static AVAILABILITY: Object = Object {
    what: "`availability`",
    keys: &[("over", Text), ("at_least", Int), ("soft", Bool)],
    required: &["at_least"],
};
pub(crate) static SLOTS: Object =
    Object { what: "`slots`", keys: &[("stay", Bool), ("elsewhere", Int)], required: &[] };
pub(crate) static GPU_SHARE: Object = Object {
    what: "`gpu`",
    keys: &[("share", Number), ("model", TEXT_OR_TEXTS), ("memory", Size)],
    required: &[],
};
pub(crate) static OUTSIDE: Object = Object {
    what: "`external`",
    keys: &[("host", Text), ("ports", List(&TextOrNumber))],
    required: &["host"],
};

/// What a job has beside what services have.
pub(crate) static TRIGGERS: Object =
    Object { what: "`triggers`", keys: &[("schedule", Text), ("manual", Bool)], required: &[] };
/// Keys of services that mean nothing where something runs once.
pub(crate) const NOT_IN_JOBS: [&str; 9] =
    ["attach", "deploy", "develop", "post_start", "pre_start", "pre_stop", "provider", "restart", "scale"];
