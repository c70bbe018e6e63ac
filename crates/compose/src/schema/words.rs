//! What each key of `x-wharf` means, with its range and its default: one line each.

use crate::shape::Object;
use crate::shapes;

/// The keys of one mapping.
pub struct Section {
    /// Where it stands: `x-wharf.routes[]`.
    pub path: &'static str,
    object: &'static Object,
    /// Each key and what it means.
    pub keys: &'static [(&'static str, &'static str)],
}
impl std::fmt::Debug for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Section").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Every mapping below `x-wharf`, in the order of the reference.
pub fn sections() -> &'static [Section] {
    SECTIONS
}

/// What a key means, if it is one of ours.
pub(super) fn of(object: &Object, key: &str) -> Option<&'static str> {
    let section = SECTIONS.iter().find(|section| std::ptr::eq(section.object, object))?;
    section.keys.iter().find(|(name, _)| *name == key).map(|(_, text)| *text)
}

/// Whether a mapping is part of `x-wharf`.
pub(super) fn is_own(object: &Object) -> bool {
    SECTIONS.iter().any(|section| std::ptr::eq(section.object, object))
}

const fn section(
    path: &'static str,
    object: &'static Object,
    keys: &'static [(&'static str, &'static str)],
) -> Section {
    Section { path, object, keys }
}

static SECTIONS: &[Section] = &[
    section(
        "x-wharf of a service",
        &shapes::WHARF,
        &[
            ("probe", "how a task's health is asked for, from its node; wins over `healthcheck`"),
            ("routes", "what the gateways pass to the service"),
            ("release", "how the service moves to a new release; the file's `x-wharf.release` if absent"),
            (
                "drain",
                "how long requests and connections under way with a task may go on before its process is asked to stop, 0s to 1h; `30s`, and `3s` where the old task stops before the new one starts",
            ),
            (
                "single_writer",
                "whether a task must never run twice, even while its node cannot be heard: it then runs only while its node hears from the cluster's leader; `true` where a service's only task writes to a volume that other nodes can read",
            ),
            ("autoscale", "how the number of tasks follows the load; nobody changes it if absent"),
            (
                "logs",
                "what is collected of the output, by the name of a stream: up to 63 of `a-z`, `0-9` and `-`",
            ),
            ("priority", "who gives way when there is not room for all, `low` first; `normal` if absent"),
            ("affinity", "which services the tasks want to be with or apart from"),
            ("availability", "over how many places the tasks must be spread"),
            (
                "strategy",
                "which node is best of those that can take a task: with `spread` the one with fewest tasks of the service, then the emptiest; with `binpack` the fullest; with `random` any; as the cluster is set",
            ),
            ("pool", "the pool of nodes that the tasks run on; nodes of no pool if absent"),
            ("tolerations", "taints of nodes that the tasks bear: `key` for any value, or `key=value`"),
            ("slots", "each slot keeps its node: for services whose tasks are not alike"),
            ("disk", "disk that each task reserves of its node, for its writable layer, volumes and logs"),
            (
                "gpu",
                "how much of a GPU each task has, such as `0.5`, or how many; with `gpus` or device requests, which ones they may be",
            ),
            (
                "external",
                "the service runs outside the cluster; nothing is started, and others find it by its name",
            ),
        ],
    ),
    section(
        "x-wharf of a service: probe",
        &shapes::PROBE,
        &[
            ("http", "a GET that must answer with a status of 200 to 399"),
            ("tcp", "a connection that must be accepted"),
            (
                "grpc",
                "a call of `grpc.health.v1.Health/Check`, in HTTP/2 without TLS, that must answer `SERVING`",
            ),
            ("exec", "a command in the container that must end with 0"),
            ("interval", "time between checks, more than 0; `10s`"),
            ("timeout", "time for one check, more than 0; `5s`"),
            ("retries", "failures in a row that make a task unhealthy, 1 to 1000; 3"),
            ("start_period", "time after the start in which failures do not count; `0s`"),
        ],
    ),
    section(
        "probe.http",
        &shapes::PROBE_HTTP,
        &[("port", "the container's port"), ("path", "path and query, beginning with `/`; `/`")],
    ),
    section("probe.tcp", &shapes::PROBE_TCP, &[("port", "the container's port")]),
    section(
        "probe.grpc",
        &shapes::PROBE_GRPC,
        &[
            ("port", "the container's port"),
            ("service", "whose health is asked for; the server's as a whole if absent"),
        ],
    ),
    section("probe.exec", &shapes::PROBE_EXEC, &[("command", "words, or one text for `/bin/sh -c`")]),
    section(
        "routes[]",
        &shapes::ROUTE,
        &[
            (
                "protocol",
                "what is spoken: `http` (HTTP/1.1 and HTTP/2, WebSocket, gRPC), `h2c` (the same, and tasks are asked in HTTP/2 without TLS), `tcp` or `udp`; `http`",
            ),
            ("host", "host names, one or a list; `*.` in front stands for any labels; every host if absent"),
            ("path", "a prefix of the path, whole segments; `/`"),
            ("methods", "HTTP methods; all if absent"),
            ("headers", "headers and the value each must have; `*` is any value"),
            ("port", "the container's port; the only one the service exposes if absent"),
            (
                "listen",
                "the gateways' port, 1 to 65535; 443 with TLS and 80 without; required for `tcp` and `udp`",
            ),
            (
                "tls",
                "who ends TLS: `off`, `auto` (the gateway, with a certificate it obtains), `passthrough` (the task), or a certificate; `off`",
            ),
            (
                "redirect",
                "requests without TLS are sent to the same address with it; `true` where the gateway ends TLS",
            ),
            ("weight", "its share beside other services with the same route, 0 to 100; 100"),
            (
                "balance",
                "how requests are spread over tasks: `least-outstanding`, `round-robin` or `hash`; `least-outstanding`",
            ),
            (
                "hash_by",
                "with `balance: hash`, the key: `client`, `path`, `header:NAME` or `cookie:NAME`; `client`",
            ),
            ("sticky", "a cookie keeps a client on one task: `true`, or how; `false`"),
            ("timeouts", "how long things may take"),
            (
                "retries",
                "further attempts at another task, for requests that can be repeated: a number, or how",
            ),
            ("rate_limit", "how many requests one client may make; no limit if absent"),
            ("concurrency", "how many requests may be under way at once; no limit if absent"),
            ("breaker", "when a failing task gets no more requests for a while"),
            ("basic_auth", "who must give a password; nobody if absent"),
            ("allow", "addresses and networks of clients that are let in; all if absent"),
            ("deny", "addresses and networks of clients that are not, though `allow` has them"),
            ("mirror", "a service that gets copies of requests; its answers are dropped"),
            ("fallback", "what answers when no task can: a service, or a fixed answer"),
            (
                "proxy_protocol",
                "where the PROXY protocol, version 2, is spoken: `off`, `in` (by clients), `out` (to tasks) or `both`; `off`",
            ),
        ],
    ),
    section(
        "routes[].tls",
        &shapes::TLS,
        &[("certificate", "a secret of the app with a certificate chain and its key, in PEM")],
    ),
    section(
        "routes[].sticky",
        &shapes::STICKY,
        &[("cookie", "the cookie's name; `WHARFTASK`"), ("max_age", "how long it lasts, more than 0; `8h`")],
    ),
    section(
        "routes[].timeouts",
        &shapes::TIMEOUTS,
        &[
            ("connect", "until a task accepts the connection, more than 0; `5s`"),
            ("request", "until the head of the answer is there, more than 0; `60s`"),
            ("idle", "without a byte in either direction, more than 0; `5m`"),
        ],
    ),
    section(
        "routes[].retries",
        &shapes::RETRIES,
        &[
            ("attempts", "attempts after the first, 0 to 10; 1"),
            ("budget_percent", "at most so many per cent of requests are repeated, 0 to 100; 20"),
        ],
    ),
    section(
        "routes[].rate_limit",
        &shapes::RATE_LIMIT,
        &[
            ("requests", "so many, at least 1"),
            ("per", "in this time, more than 0; `1s`"),
            ("burst", "so many at once, at least 1; as many as `requests`"),
            ("by", "who is one client: `client`, `path`, `header:NAME` or `cookie:NAME`; `client`"),
        ],
    ),
    section(
        "routes[].concurrency",
        &shapes::CONCURRENCY,
        &[
            ("requests", "at each task, 1 to 1000000"),
            ("queue", "how many may wait beyond that, 0 to 1000000; 0"),
            ("wait", "how long, more than 0; `5s`"),
        ],
    ),
    section(
        "routes[].breaker",
        &shapes::BREAKER,
        &[
            ("failures", "failures in a row that open it, 1 to 1000; 5"),
            ("open", "for how long, then one request tries again, more than 0; `10s`"),
            ("most_percent", "at most so many per cent of the tasks at once, 0 to 100; 50"),
        ],
    ),
    section(
        "routes[].basic_auth",
        &shapes::BASIC_AUTH,
        &[
            ("secret", "a secret of the app with lines of `user:hash`, as `htpasswd` writes them"),
            ("realm", "what browsers show; the host"),
        ],
    ),
    section(
        "routes[].mirror",
        &shapes::MIRROR,
        &[
            ("service", "which service of the app"),
            ("port", "its container's port; the route's own"),
            ("percent", "of so many per cent of requests, 1 to 100; 100"),
        ],
    ),
    section(
        "routes[].fallback",
        &shapes::FALLBACK,
        &[
            ("service", "another service of the app; excludes the keys of a fixed answer"),
            ("port", "its container's port; the route's own"),
            ("status", "of the fixed answer, 200 to 599; 503"),
            ("body", "its text, at most 64 KiB; empty"),
            ("content_type", "its media type; `text/plain; charset=utf-8`"),
        ],
    ),
    section(
        "release",
        &shapes::STRATEGY,
        &[
            (
                "strategy",
                "`rolling` (slot by slot, as `deploy.update_config` says), `blue-green` (a second set, then one switch) or `canary` (a growing share of the requests)",
            ),
            ("preview", "blue-green: a host at which the new set answers before the switch; none"),
            ("keep", "blue-green: how long the old set stays after the switch; `10m`"),
            ("promote", "blue-green and canary: `auto`, or `manual` (a person lets it go on); `auto`"),
            ("steps", "canary: shares in per cent, growing; a number is a step of one minute"),
            ("judge", "canary: what the new release must not exceed, compared with the old one"),
        ],
    ),
    section(
        "release.steps[]",
        &shapes::STEP,
        &[
            ("weight", "per cent of the requests, 1 to 100, more than the step before"),
            ("hold", "how long; `1m`"),
        ],
    ),
    section(
        "release.judge",
        &shapes::JUDGE,
        &[
            ("errors_percent", "failing requests above the old release's, in per cent of all, 0 to 100; 1"),
            (
                "latency_percent",
                "the 95th percentile of latency in per cent of the old release's, 100 to 10000; 150",
            ),
            ("requests", "so many requests are needed for a judgement, at least 1; 100"),
        ],
    ),
    section(
        "autoscale",
        &shapes::AUTOSCALE,
        &[
            ("min", "never fewer tasks, 0 to 10000; 1"),
            ("max", "never more tasks, 1 to 10000; 10"),
            ("metrics", "what is measured, at least one thing; the one that asks for most tasks decides"),
            ("step", "at most so many tasks more or fewer at a time, 1 to 1000; 1"),
            ("window", "the mean over this time counts, more than 0; `3m`"),
            ("cool_down", "nothing changes for this long after a change; `3m`"),
        ],
    ),
    section(
        "autoscale.metrics",
        &shapes::METRICS,
        &[
            ("cpu", "processor time, in per cent of the limit, or of one processor without one"),
            ("memory", "memory, in per cent of the limit, or of the node's without one, 1 to 100"),
            ("network_in", "bytes received per second; `10m` and the like may be written"),
            ("network_out", "bytes sent per second"),
            ("requests", "requests per second through routes"),
            ("latency", "the 95th percentile of the routes' latency in milliseconds"),
        ],
    ),
    section(
        "autoscale.metrics.*",
        &shapes::BOUNDS,
        &[
            ("target", "near this; the same as a number in place of the mapping"),
            ("above", "more tasks above this"),
            ("below", "fewer tasks below this; smaller than `above`"),
        ],
    ),
    section(
        "logs.*",
        &shapes::LOG_STREAM,
        &[
            (
                "from",
                "`stdout` (with standard error), or files: an absolute path in the container, `*` in its last part; `stdout`",
            ),
            ("keep", "how long it is kept, 1 hour to 3650 days; as the cluster is set"),
            ("format", "how lines are read: `text`, or `json` (an object each); `text`"),
        ],
    ),
    section(
        "affinity[]",
        &shapes::AFFINITY,
        &[
            ("near", "where a task of this service is"),
            ("apart", "where no task of this service is; its own name means one task in each place"),
            ("near_image", "where this image is already"),
            ("scope", "what is one place: `node`, or a label of nodes such as `node.labels.zone`; `node`"),
            ("soft", "a wish rather than a condition; `false`"),
        ],
    ),
    section(
        "availability",
        &shapes::AVAILABILITY,
        &[
            ("over", "what is one place: a label of nodes; `node.labels.zone`"),
            ("at_least", "in so many places, 2 to 1000"),
            ("soft", "in as many as there are, if there are fewer; `false`"),
        ],
    ),
    section(
        "slots",
        &shapes::SLOTS,
        &[
            (
                "stay",
                "a slot's next task goes to the node of its last one as long as that can take it; `true`",
            ),
            (
                "elsewhere",
                "from every node's view so many tasks of the service are on other nodes: the loss of one node leaves these; 0",
            ),
        ],
    ),
    section(
        "gpu",
        &shapes::GPU_SHARE,
        &[
            (
                "share",
                "so much of one, in steps of 0.001, beside other tasks that share it; from 1 on whole ones; 1, or as many as `gpus` and device requests say",
            ),
            ("model", "one of these products, such as `T4`; any if absent"),
            ("memory", "each with at least so much memory"),
        ],
    ),
    section(
        "external",
        &shapes::OUTSIDE,
        &[
            ("host", "an IP address or a domain name"),
            ("ports", "the ports it answers on, 1 to 65535; shown to people"),
        ],
    ),
    section(
        "x-wharf of a file",
        &shapes::WHARF_APP,
        &[
            ("release", "how services move to a new release that do not say it themselves; `rolling`"),
            ("priority", "the priority of services that have none of their own; `normal`"),
            ("hooks", "one-off commands around a release"),
        ],
    ),
    section(
        "x-wharf of a network",
        &shapes::WHARF_NETWORK,
        &[
            (
                "backend",
                "how its packets travel between nodes; the cluster's default if absent ([which one](../howto/networks.md))",
            ),
            (
                "parent",
                "with `macvlan`: the nodes' interface whose segment containers join, `eth0`, or `eth0.100` for VLAN 100 on it",
            ),
        ],
    ),
    section(
        "x-wharf of a file: hooks",
        &shapes::HOOKS,
        &[
            ("before", "in order, before any task is replaced; one that fails ends the release"),
            ("after", "in order, once every service is as wanted"),
        ],
    ),
    section(
        "hooks.before[] and hooks.after[]",
        &shapes::RELEASE_HOOK,
        &[
            ("service", "whose image, environment, networks and mounts the command has"),
            ("command", "words, or one text for `/bin/sh -c`"),
            ("timeout", "how long it may take, more than 0; `10m`"),
        ],
    ),
    section(
        "jobs.*.triggers",
        &shapes::TRIGGERS,
        &[
            (
                "schedule",
                "when the job runs by itself: five fields as in crontab, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`; never if absent",
            ),
            ("manual", "whether people may start it; `true`"),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_ours_is_described_once() {
        for section in SECTIONS {
            let known: Vec<&str> = section.object.keys.iter().map(|(key, _)| *key).collect();
            let described: Vec<&str> = section.keys.iter().map(|(key, _)| *key).collect();
            assert_eq!(known, described, "{}", section.path);
        }
    }
}
