//! The shapes of the Compose Specification: every key there is, and what may stand behind it.
//!
//! A key that is here and that the cluster cannot honour is refused where its meaning is read, with a reason; a key that
//! is not here is unknown.

use crate::diagnostic::did_you_mean;
use crate::shape::Object;
use crate::shape::Shape::{
    self, Any, Bool, Duration, Either, Int, Job, List, Map, MapOf, Named, Number, OrNull, Scalar, Size, Text,
    TextOrNumber, Word,
};

mod wharf;
pub(crate) use wharf::*;

const TEXTS: Shape = List(&Text);
const TEXT_OR_TEXTS: Shape = Either(&[Text, TEXTS]);
const PAIRS: Shape = Either(&[MapOf(&Scalar), TEXTS]);
const COMMAND: Shape = OrNull(&TEXT_OR_TEXTS);
const OPTIONS: Shape = MapOf(&TextOrNumber);
const HOSTS: Shape = Either(&[MapOf(&TEXT_OR_TEXTS), TEXTS]);
const ULIMITS: Shape = MapOf(&Either(&[Int, Map(&ULIMIT)]));
const MOUNTED_FILES: Shape = List(&Either(&[Text, Map(&MOUNTED_FILE)]));
const EXTERNAL: Shape = Either(&[Bool, Map(&EXTERNAL_NAME)]);
const ORDER: Shape = Word(&["start-first", "stop-first"]);

pub(crate) static FILE: Object = Object {
    what: "a Compose file",
    keys: &[
        ("version", Text),
        ("name", Text),
        ("include", List(&Either(&[Text, Map(&INCLUDE)]))),
        ("services", Named("a service", &Map(&SERVICE))),
        ("models", Named("a model", &Map(&MODEL))),
        ("networks", Named("a network", &OrNull(&Map(&NETWORK)))),
        ("volumes", Named("a volume", &OrNull(&Map(&VOLUME)))),
        ("secrets", Named("a secret", &Map(&SECRET))),
        ("configs", Named("a config", &Map(&CONFIG))),
        ("jobs", Named("a job", &Job(&JOB))),
        ("x-wharf", Map(&WHARF_APP)),
    ],
    required: &[],
};
pub(crate) static INCLUDE: Object = Object {
    what: "an include",
    keys: &[("path", TEXT_OR_TEXTS), ("env_file", TEXT_OR_TEXTS), ("project_directory", Text)],
    required: &[],
};
pub(crate) static SERVICE: Object = Object {
    what: "a service",
    keys: &[
        ("image", Text),
        ("build", Either(&[Text, Map(&BUILD)])),
        ("command", COMMAND),
        ("entrypoint", COMMAND),
        ("environment", PAIRS),
        ("env_file", Either(&[Text, List(&Either(&[Text, Map(&ENV_FILE)]))])),
        ("ports", List(&Either(&[TextOrNumber, Map(&PORT)]))),
        ("expose", List(&TextOrNumber)),
        ("volumes", List(&Either(&[Text, Map(&MOUNT)]))),
        ("depends_on", Either(&[TEXTS, Named("a service", &Map(&DEPENDENCY))])),
        ("networks", Either(&[TEXTS, Named("a network", &OrNull(&Map(&ATTACHMENT)))])),
        ("restart", Text),
        ("deploy", OrNull(&Map(&DEPLOY))),
        ("healthcheck", Map(&HEALTHCHECK)),
        ("labels", PAIRS),
        ("label_file", TEXT_OR_TEXTS),
        ("annotations", PAIRS),
        ("configs", MOUNTED_FILES),
        ("secrets", MOUNTED_FILES),
        ("profiles", TEXTS),
        ("scale", Int),
        ("extends", Either(&[Text, Map(&EXTENDS)])),
        ("container_name", Text),
        ("hostname", Text),
        ("domainname", Text),
        ("user", Text),
        ("working_dir", Text),
        ("tty", Bool),
        ("stdin_open", Bool),
        ("init", Bool),
        ("read_only", Bool),
        ("privileged", Bool),
        ("cap_add", TEXTS),
        ("cap_drop", TEXTS),
        ("security_opt", TEXTS),
        ("group_add", List(&TextOrNumber)),
        ("devices", List(&Either(&[Text, Map(&DEVICE)]))),
        ("device_cgroup_rules", TEXTS),
        ("dns", TEXT_OR_TEXTS),
        ("dns_search", TEXT_OR_TEXTS),
        ("dns_opt", TEXTS),
        ("extra_hosts", HOSTS),
        ("network_mode", Text),
        ("links", TEXTS),
        ("external_links", TEXTS),
        ("mac_address", Text),
        ("ipc", Text),
        ("pid", OrNull(&Text)),
        ("uts", Text),
        ("userns_mode", Text),
        ("cgroup", Word(&["host", "private"])),
        ("cgroup_parent", Text),
        ("shm_size", Size),
        ("sysctls", PAIRS),
        ("ulimits", ULIMITS),
        ("tmpfs", TEXT_OR_TEXTS),
        ("volumes_from", TEXTS),
        ("logging", Map(&LOGGING)),
        ("oom_kill_disable", Bool),
        ("oom_score_adj", Int),
        ("mem_limit", Size),
        ("mem_reservation", Size),
        ("memswap_limit", Size),
        ("mem_swappiness", Int),
        ("cpus", Number),
        ("cpu_shares", Int),
        ("cpu_period", TextOrNumber),
        ("cpu_quota", TextOrNumber),
        ("cpu_rt_period", TextOrNumber),
        ("cpu_rt_runtime", TextOrNumber),
        ("cpu_count", Int),
        ("cpu_percent", Number),
        ("cpuset", Text),
        ("pids_limit", Int),
        ("blkio_config", Map(&BLKIO)),
        ("runtime", Text),
        ("isolation", Text),
        ("credential_spec", Map(&CREDENTIAL_SPEC)),
        ("storage_opt", MapOf(&Scalar)),
        ("stop_signal", Text),
        ("stop_grace_period", Duration),
        ("pull_policy", Text),
        ("pull_refresh_after", Text),
        ("platform", Text),
        ("gpus", Either(&[Word(&["all"]), List(&Map(&GPU))])),
        ("attach", Bool),
        ("develop", OrNull(&Map(&DEVELOP))),
        ("provider", Map(&PROVIDER)),
        ("models", Either(&[TEXTS, Named("a model", &OrNull(&Map(&MODEL_USE)))])),
        ("pre_start", List(&Map(&PRE_START))),
        ("post_start", List(&Map(&HOOK))),
        ("pre_stop", List(&Map(&HOOK))),
        ("use_api_socket", Bool),
        // Of the Swarm-era Alibaba Container Service; today `x-wharf: {external: …}`.
        ("external", Map(&OUTSIDE)),
        ("x-wharf", Map(&WHARF)),
    ],
    required: &[],
};
/// A job of the draft for `jobs:`: what a service is, `triggers` in place of what keeps a service running.
pub(crate) static JOB: Object = Object { what: "a job", keys: SERVICE.keys, required: &[] };
pub(crate) static EXTENDS: Object =
    Object { what: "`extends`", keys: &[("service", Text), ("file", Text)], required: &["service"] };
pub(crate) static ENV_FILE: Object = Object {
    what: "an env file",
    keys: &[("path", Text), ("format", Text), ("required", Bool)],
    required: &["path"],
};
pub(crate) static PORT: Object = Object {
    what: "a port",
    keys: &[
        ("name", Text),
        ("mode", Text),
        ("host_ip", Text),
        ("target", Int),
        ("published", TextOrNumber),
        ("protocol", Text),
        ("app_protocol", Text),
    ],
    required: &[],
};
pub(crate) static DEPENDENCY: Object = Object {
    what: "a dependency",
    keys: &[
        ("condition", Word(&["service_started", "service_healthy", "service_completed_successfully"])),
        ("restart", Bool),
        ("required", Bool),
    ],
    required: &["condition"],
};
pub(crate) static ATTACHMENT: Object = Object {
    what: "a service's network",
    keys: &[
        ("aliases", TEXTS),
        ("interface_name", Text),
        ("ipv4_address", Text),
        ("ipv6_address", Text),
        ("link_local_ips", TEXTS),
        ("mac_address", Text),
        ("driver_opts", OPTIONS),
        ("priority", Number),
        ("gw_priority", Number),
    ],
    required: &[],
};
pub(crate) static HEALTHCHECK: Object = Object {
    what: "a healthcheck",
    keys: &[
        ("disable", Bool),
        ("test", TEXT_OR_TEXTS),
        ("interval", Duration),
        ("timeout", Duration),
        ("retries", Int),
        ("start_period", Duration),
        ("start_interval", Duration),
    ],
    required: &[],
};
pub(crate) static LOGGING: Object = Object {
    what: "`logging`",
    keys: &[("driver", Text), ("options", MapOf(&OrNull(&TextOrNumber)))],
    required: &[],
};
pub(crate) static MOUNT: Object = Object {
    what: "a volume of a service",
    keys: &[
        ("type", Word(&["bind", "volume", "tmpfs", "cluster", "npipe", "image"])),
        ("source", Text),
        ("target", Text),
        ("read_only", Bool),
        ("consistency", Text),
        ("bind", Map(&MOUNT_BIND)),
        ("volume", Map(&MOUNT_VOLUME)),
        ("tmpfs", Map(&MOUNT_TMPFS)),
        ("image", Map(&MOUNT_IMAGE)),
    ],
    required: &["type"],
};
pub(crate) static MOUNT_BIND: Object = Object {
    what: "`bind`",
    keys: &[
        ("propagation", Text),
        ("create_host_path", Bool),
        ("recursive", Word(&["enabled", "disabled", "writable", "readonly"])),
        ("selinux", Word(&["z", "Z"])),
    ],
    required: &[],
};
pub(crate) static MOUNT_VOLUME: Object = Object {
    what: "`volume`",
    keys: &[("labels", PAIRS), ("nocopy", Bool), ("subpath", Text)],
    required: &[],
};
pub(crate) static MOUNT_TMPFS: Object =
    Object { what: "`tmpfs`", keys: &[("size", Size), ("mode", TextOrNumber)], required: &[] };
pub(crate) static MOUNT_IMAGE: Object = Object { what: "`image`", keys: &[("subpath", Text)], required: &[] };
pub(crate) static MOUNTED_FILE: Object = Object {
    what: "a mounted file",
    keys: &[("source", Text), ("target", Text), ("uid", Text), ("gid", Text), ("mode", TextOrNumber)],
    required: &[],
};
pub(crate) static DEVICE: Object = Object {
    what: "a device",
    keys: &[("source", Text), ("target", Text), ("permissions", Text)],
    required: &["source"],
};
pub(crate) static ULIMIT: Object =
    Object { what: "a ulimit", keys: &[("soft", Int), ("hard", Int)], required: &["soft", "hard"] };
pub(crate) static BLKIO: Object = Object {
    what: "`blkio_config`",
    keys: &[
        ("weight", Int),
        ("weight_device", List(&Map(&BLKIO_WEIGHT))),
        ("device_read_bps", List(&Map(&BLKIO_LIMIT))),
        ("device_read_iops", List(&Map(&BLKIO_LIMIT))),
        ("device_write_bps", List(&Map(&BLKIO_LIMIT))),
        ("device_write_iops", List(&Map(&BLKIO_LIMIT))),
    ],
    required: &[],
};
pub(crate) static BLKIO_WEIGHT: Object =
    Object { what: "a device's weight", keys: &[("path", Text), ("weight", Int)], required: &[] };
pub(crate) static BLKIO_LIMIT: Object =
    Object { what: "a device's limit", keys: &[("path", Text), ("rate", Size)], required: &[] };
pub(crate) static CREDENTIAL_SPEC: Object = Object {
    what: "`credential_spec`",
    keys: &[("config", Text), ("file", Text), ("registry", Text)],
    required: &[],
};
pub(crate) static GPU: Object = Object {
    what: "a GPU request",
    keys: &[
        ("capabilities", TEXTS),
        ("count", TextOrNumber),
        ("device_ids", TEXTS),
        ("driver", Text),
        ("options", PAIRS),
    ],
    required: &[],
};
pub(crate) static DEVICE_REQUEST: Object = Object {
    what: "a device reservation",
    keys: &[
        ("capabilities", TEXTS),
        ("count", TextOrNumber),
        ("device_ids", TEXTS),
        ("driver", Text),
        ("options", PAIRS),
    ],
    required: &["capabilities"],
};
pub(crate) static DEPLOY: Object = Object {
    what: "`deploy`",
    keys: &[
        ("mode", Text),
        ("endpoint_mode", Text),
        ("replicas", Int),
        ("labels", PAIRS),
        ("update_config", Map(&UPDATE)),
        ("rollback_config", Map(&UPDATE)),
        ("resources", Map(&RESOURCES)),
        ("restart_policy", Map(&RESTART)),
        ("placement", Map(&PLACEMENT)),
    ],
    required: &[],
};
pub(crate) static UPDATE: Object = Object {
    what: "an update policy",
    keys: &[
        ("parallelism", Int),
        ("delay", Duration),
        ("failure_action", Text),
        ("monitor", Duration),
        ("max_failure_ratio", Number),
        ("order", ORDER),
    ],
    required: &[],
};
pub(crate) static RESOURCES: Object = Object {
    what: "`resources`",
    keys: &[("limits", Map(&LIMITS)), ("reservations", Map(&RESERVATIONS))],
    required: &[],
};
pub(crate) static LIMITS: Object =
    Object { what: "`limits`", keys: &[("cpus", Number), ("memory", Size), ("pids", Int)], required: &[] };
pub(crate) static RESERVATIONS: Object = Object {
    what: "`reservations`",
    keys: &[
        ("cpus", Number),
        ("memory", Size),
        ("generic_resources", List(&Any)),
        ("devices", List(&Map(&DEVICE_REQUEST))),
    ],
    required: &[],
};
pub(crate) static RESTART: Object = Object {
    what: "a restart policy",
    keys: &[("condition", Text), ("delay", Duration), ("max_attempts", Int), ("window", Duration)],
    required: &[],
};
pub(crate) static PLACEMENT: Object = Object {
    what: "`placement`",
    keys: &[("constraints", TEXTS), ("preferences", List(&Map(&PREFERENCE))), ("max_replicas_per_node", Int)],
    required: &[],
};
pub(crate) static PREFERENCE: Object =
    Object { what: "a placement preference", keys: &[("spread", Text)], required: &[] };
pub(crate) static BUILD: Object = Object {
    what: "`build`",
    keys: &[
        ("context", Text),
        ("dockerfile", Text),
        ("dockerfile_inline", Text),
        ("entitlements", TEXTS),
        ("args", PAIRS),
        ("ssh", PAIRS),
        ("labels", PAIRS),
        ("cache_from", TEXTS),
        ("cache_to", TEXTS),
        ("no_cache", Bool),
        ("no_cache_filter", TEXT_OR_TEXTS),
        ("additional_contexts", PAIRS),
        ("network", Text),
        ("provenance", Either(&[Text, Bool])),
        ("sbom", Either(&[Text, Bool])),
        ("pull", Bool),
        ("target", Text),
        ("shm_size", Size),
        ("extra_hosts", HOSTS),
        ("isolation", Text),
        ("privileged", Bool),
        ("secrets", MOUNTED_FILES),
        ("tags", TEXTS),
        ("ulimits", ULIMITS),
        ("platforms", TEXTS),
    ],
    required: &[],
};
pub(crate) static DEVELOP: Object =
    Object { what: "`develop`", keys: &[("watch", List(&Map(&WATCH)))], required: &[] };
pub(crate) static WATCH: Object = Object {
    what: "a watch rule",
    keys: &[
        ("path", Text),
        ("action", Word(&["rebuild", "sync", "restart", "sync+restart", "sync+exec"])),
        ("target", Text),
        ("ignore", TEXT_OR_TEXTS),
        ("include", TEXT_OR_TEXTS),
        ("exec", Map(&HOOK)),
        ("initial_sync", Bool),
    ],
    required: &["path", "action"],
};
pub(crate) static HOOK: Object = Object {
    what: "a hook",
    keys: &[
        ("command", COMMAND),
        ("user", Text),
        ("privileged", Bool),
        ("working_dir", Text),
        ("environment", PAIRS),
    ],
    required: &["command"],
};
pub(crate) static PRE_START: Object = Object {
    what: "a hook",
    keys: &[
        ("command", COMMAND),
        ("image", Text),
        ("user", Text),
        ("privileged", Bool),
        ("working_dir", Text),
        ("environment", PAIRS),
        ("per_replica", Bool),
    ],
    required: &[],
};
pub(crate) static PROVIDER: Object =
    Object { what: "a provider", keys: &[("type", Text), ("options", MapOf(&Any))], required: &["type"] };
pub(crate) static MODEL_USE: Object =
    Object { what: "a service's model", keys: &[("endpoint_var", Text), ("model_var", Text)], required: &[] };
pub(crate) static MODEL: Object = Object {
    what: "a model",
    keys: &[("name", Text), ("model", Text), ("context_size", Int), ("runtime_flags", TEXTS)],
    required: &["model"],
};
pub(crate) static NETWORK: Object = Object {
    what: "a network",
    keys: &[
        ("name", Text),
        ("driver", Text),
        ("driver_opts", OPTIONS),
        ("ipam", Map(&IPAM)),
        ("external", EXTERNAL),
        ("internal", Bool),
        ("enable_ipv4", Bool),
        ("enable_ipv6", Bool),
        ("attachable", Bool),
        ("labels", PAIRS),
        ("x-wharf", Map(&WHARF_NETWORK)),
    ],
    required: &[],
};
pub(crate) static IPAM: Object = Object {
    what: "`ipam`",
    keys: &[("driver", Text), ("config", List(&Map(&IPAM_POOL))), ("options", MapOf(&Text))],
    required: &[],
};
pub(crate) static IPAM_POOL: Object = Object {
    what: "an address pool",
    keys: &[("subnet", Text), ("ip_range", Text), ("gateway", Text), ("aux_addresses", MapOf(&Text))],
    required: &[],
};
pub(crate) static VOLUME: Object = Object {
    what: "a volume",
    keys: &[
        ("name", Text),
        ("driver", Text),
        ("driver_opts", OPTIONS),
        ("external", EXTERNAL),
        ("labels", PAIRS),
    ],
    required: &[],
};
pub(crate) static SECRET: Object = Object {
    what: "a secret",
    keys: &[
        ("name", Text),
        ("environment", Text),
        ("file", Text),
        ("content", Text),
        ("external", EXTERNAL),
        ("labels", PAIRS),
        ("driver", Text),
        ("driver_opts", OPTIONS),
        ("template_driver", Text),
    ],
    required: &[],
};
pub(crate) static CONFIG: Object = Object {
    what: "a config",
    keys: &[
        ("name", Text),
        ("content", Text),
        ("environment", Text),
        ("file", Text),
        ("external", EXTERNAL),
        ("labels", PAIRS),
        ("template_driver", Text),
    ],
    required: &[],
};
pub(crate) static EXTERNAL_NAME: Object =
    Object { what: "`external`", keys: &[("name", Text)], required: &[] };

/// What somebody may have meant by a key that is not one.
pub(crate) fn hint_for_unknown(name: &str, object: &Object) -> Option<String> {
    let has = |object: &Object| object.keys.iter().any(|(known, _)| *known == name);
    let close = did_you_mean(name, object.keys.iter().map(|(known, _)| *known));
    if std::ptr::eq(object, &SERVICE) || std::ptr::eq(object, &JOB) {
        let elsewhere: [(&Object, &str); 7] = [
            (&DEPLOY, "deploy"),
            (&LIMITS, "deploy.resources.limits"),
            (&PLACEMENT, "deploy.placement"),
            (&BUILD, "build"),
            (&HEALTHCHECK, "healthcheck"),
            (&WHARF, "x-wharf"),
            (&FILE, ""),
        ];
        let found = elsewhere.into_iter().find(|(object, _)| has(object)).map(|(_, path)| path);
        return close.or(match (name, found) {
            ("net", _) => Some("write `network_mode`".to_owned()),
            ("dockerfile", _) => Some("write `build: {dockerfile: …}`".to_owned()),
            ("log_driver" | "log_opt", _) => Some("write `logging: {driver: …, options: …}`".to_owned()),
            (_, Some("")) => Some(format!("`{name}` stands at the top level of the file")),
            (_, Some(path)) => Some(format!("`{name}` belongs under `{path}`")),
            _ => None,
        });
    }
    if std::ptr::eq(object, &FILE) {
        return close.or_else(|| {
            let service = has(&SERVICE).then(|| format!("`{name}` belongs into a service, under `services`"));
            Some(service.unwrap_or_else(|| {
                format!("services stand under `services`; what only anchors are for is called `x-{name}`")
            }))
        });
    }
    close.or_else(|| {
        let mut known: Vec<&str> = object.keys.iter().map(|(known, _)| *known).collect();
        known.truncate(12);
        (object.keys.len() <= 12)
            .then(|| format!("it has {}", crate::shape::one_of(&known).replace(" or ", " and ")))
    })
}
