//! The forms of the reference's model: which keys a thing has, in the order in which they are printed, and how each value
//! is written down.
//!
//! A key that is not in a form is not printed; the shapes have refused it before. `jobs` and other additions of ours are
//! listed as they are.

/// How a value is written, and when it is left out.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Text; left out where empty.
    Text,
    /// Text, even where empty.
    AlwaysText,
    /// A boolean; left out where false.
    Flag,
    /// A boolean as given.
    Choice,
    /// A boolean; left out where true.
    OptOut,
    /// A whole number; left out where zero.
    Whole,
    /// A whole number of microseconds, also given as a length of time; left out where zero.
    Microseconds,
    /// A whole number; zero where absent.
    AlwaysWhole,
    /// A whole number as given.
    GivenWhole,
    /// A number with the precision of 32 bits; left out where zero.
    Ratio,
    /// A number of bytes, printed as text without a unit; left out where zero.
    Bytes,
    /// The same; zero where absent.
    AlwaysBytes,
    /// A length of time; left out where zero.
    Time,
    /// A length of time as given.
    GivenTime,
    /// Permission bits, printed as octal text.
    Mode,
    /// A list of texts; left out where empty.
    Texts,
    /// A command line: absent and empty are different things, and JSON says `null` where it is absent.
    Command,
    /// A check: a list, or text for a shell.
    Test,
    /// Texts by name; left out where there is none. Nothing is empty text.
    Labels,
    /// Texts or nothing by name; left out where there is none.
    Variables,
    /// Lists of texts by name.
    Repeated,
    /// Hosts and their addresses, as a sorted list.
    Hosts,
    /// Limits by name: a number, or two.
    Limits,
    /// A number of devices; `all` is -1.
    Count,
    /// Keys for `ssh`.
    Keys,
    /// A mapping; left out where absent.
    Object(&'static Form),
    /// A mapping that is always there: JSON prints it even where empty.
    Part(&'static Form),
    /// A list of mappings.
    Items(&'static Form),
    /// Mappings, or nothing, by name.
    Named(&'static Form),
    /// Mappings by name; nothing is an empty one.
    Group(&'static Form),
    /// The same, and there even where empty.
    AlwaysGroup(&'static Form),
    /// The same, in YAML only.
    YamlGroup(&'static Form),
    /// Whatever is there.
    Any,
}
use Kind::{
    AlwaysBytes, AlwaysGroup, AlwaysText, AlwaysWhole, Any, Bytes, Choice, Command, Count, Flag, GivenTime,
    GivenWhole, Group, Hosts, Items, Keys, Labels, Limits, Microseconds, Mode, Named, Object, OptOut, Part,
    Ratio, Repeated, Test, Text, Texts, Time, Variables, Whole, YamlGroup,
};

/// A mapping with known keys.
pub(super) struct Form {
    pub(super) fields: &'static [(&'static str, Kind)],
    /// Whether JSON has the extensions (`x-…`) too; YAML always has them.
    pub(super) extensions_in_json: bool,
    /// Whether JSON writes its keys with a capital.
    pub(super) capitals_in_json: bool,
}

const fn form(fields: &'static [(&'static str, Kind)]) -> Form {
    Form { fields, extensions_in_json: false, capitals_in_json: false }
}

pub(super) static PROJECT: Form = Form {
    fields: &[
        ("name", Text),
        ("services", AlwaysGroup(&SERVICE)),
        ("jobs", Any),
        ("networks", Group(&NETWORK)),
        ("volumes", Group(&VOLUME)),
        ("secrets", Group(&SECRET)),
        ("configs", Group(&CONFIG)),
        ("models", YamlGroup(&MODEL)),
    ],
    extensions_in_json: true,
    capitals_in_json: false,
};

pub(super) static SERVICE: Form = form(&[
    ("profiles", Texts),
    // Of the Swarm-era Alibaba Container Service: a service that runs elsewhere.
    ("external", Any),
    ("annotations", Labels),
    ("attach", Choice),
    ("build", Object(&BUILD)),
    ("develop", Object(&DEVELOP)),
    ("blkio_config", Object(&BLKIO)),
    ("cap_add", Texts),
    ("cap_drop", Texts),
    ("cgroup_parent", Text),
    ("cgroup", Text),
    ("cpu_count", Whole),
    ("cpu_percent", Ratio),
    ("cpu_period", Microseconds),
    ("cpu_quota", Microseconds),
    ("cpu_rt_period", Microseconds),
    ("cpu_rt_runtime", Microseconds),
    ("cpus", Ratio),
    ("cpuset", Text),
    ("cpu_shares", Whole),
    ("command", Command),
    ("configs", Items(&MOUNTED_FILE)),
    ("container_name", Text),
    ("credential_spec", Object(&CREDENTIAL_SPEC)),
    ("depends_on", Group(&DEPENDENCY)),
    ("deploy", Object(&DEPLOY)),
    ("device_cgroup_rules", Texts),
    ("devices", Items(&DEVICE)),
    ("dns", Texts),
    ("dns_opt", Texts),
    ("dns_search", Texts),
    ("domainname", Text),
    ("entrypoint", Command),
    ("provider", Object(&PROVIDER)),
    ("environment", Variables),
    ("env_file", Items(&ENV_FILE)),
    ("expose", Texts),
    ("extends", Object(&EXTENDS)),
    ("external_links", Texts),
    ("extra_hosts", Hosts),
    ("group_add", Texts),
    ("gpus", Items(&DEVICE_REQUEST)),
    ("hostname", Text),
    ("healthcheck", Object(&HEALTHCHECK)),
    ("image", Text),
    ("init", Choice),
    ("ipc", Text),
    ("isolation", Text),
    ("labels", Labels),
    ("label_file", Texts),
    ("links", Texts),
    ("logging", Object(&LOGGING)),
    ("mem_limit", Bytes),
    ("mem_reservation", Bytes),
    ("memswap_limit", Bytes),
    ("mem_swappiness", Bytes),
    ("mac_address", Text),
    ("models", Named(&MODEL_USE)),
    ("network_mode", Text),
    ("networks", Named(&ATTACHMENT)),
    ("oom_kill_disable", Flag),
    ("oom_score_adj", Whole),
    ("pid", Text),
    ("pids_limit", Whole),
    ("platform", Text),
    ("ports", Items(&PORT)),
    ("privileged", Flag),
    ("pull_policy", Text),
    ("pull_refresh_after", Text),
    ("read_only", Flag),
    ("restart", Text),
    ("runtime", Text),
    ("scale", GivenWhole),
    ("secrets", Items(&MOUNTED_FILE)),
    ("security_opt", Texts),
    ("shm_size", Bytes),
    ("stdin_open", Flag),
    ("stop_grace_period", GivenTime),
    ("stop_signal", Text),
    ("storage_opt", Labels),
    ("sysctls", Labels),
    ("tmpfs", Texts),
    ("tty", Flag),
    ("ulimits", Limits),
    ("use_api_socket", Flag),
    ("user", Text),
    ("userns_mode", Text),
    ("uts", Text),
    ("volumes", Items(&MOUNT)),
    ("volumes_from", Texts),
    ("working_dir", Text),
    ("pre_start", Items(&HOOK)),
    ("post_start", Items(&HOOK)),
    ("pre_stop", Items(&HOOK)),
]);

static BUILD: Form = form(&[
    ("context", Text),
    ("dockerfile", Text),
    ("dockerfile_inline", Text),
    ("entitlements", Texts),
    ("args", Variables),
    ("provenance", Text),
    ("sbom", Text),
    ("ssh", Keys),
    ("labels", Labels),
    ("cache_from", Texts),
    ("cache_to", Texts),
    ("no_cache", Flag),
    ("no_cache_filter", Texts),
    ("additional_contexts", Labels),
    ("pull", Flag),
    ("extra_hosts", Hosts),
    ("isolation", Text),
    ("network", Text),
    ("target", Text),
    ("secrets", Items(&MOUNTED_FILE)),
    ("shm_size", Bytes),
    ("tags", Texts),
    ("ulimits", Limits),
    ("platforms", Texts),
    ("privileged", Flag),
]);
static DEVELOP: Form = form(&[("watch", Items(&WATCH))]);
static WATCH: Form = form(&[
    ("path", AlwaysText),
    ("action", AlwaysText),
    ("target", Text),
    ("exec", Part(&HOOK)),
    ("include", Texts),
    ("ignore", Texts),
    ("initial_sync", Flag),
]);
static HOOK: Form = form(&[
    ("command", Command),
    ("image", Text),
    ("user", Text),
    ("privileged", Flag),
    ("working_dir", Text),
    ("environment", Variables),
    ("per_replica", Flag),
]);
static BLKIO: Form = form(&[
    ("weight", Whole),
    ("weight_device", Items(&BLKIO_WEIGHT)),
    ("device_read_bps", Items(&BLKIO_LIMIT)),
    ("device_read_iops", Items(&BLKIO_LIMIT)),
    ("device_write_bps", Items(&BLKIO_LIMIT)),
    ("device_write_iops", Items(&BLKIO_LIMIT)),
]);
static BLKIO_WEIGHT: Form = Form {
    fields: &[("path", AlwaysText), ("weight", AlwaysWhole)],
    extensions_in_json: false,
    capitals_in_json: true,
};
static BLKIO_LIMIT: Form = Form {
    fields: &[("path", AlwaysText), ("rate", AlwaysBytes)],
    extensions_in_json: false,
    capitals_in_json: true,
};
static MOUNTED_FILE: Form =
    form(&[("source", Text), ("target", Text), ("uid", Text), ("gid", Text), ("mode", Mode)]);
static CREDENTIAL_SPEC: Form = form(&[("config", Text), ("file", Text), ("registry", Text)]);
static DEPENDENCY: Form = form(&[("condition", Text), ("restart", Flag), ("required", Choice)]);
static DEPLOY: Form = form(&[
    ("mode", Text),
    ("replicas", GivenWhole),
    ("labels", Labels),
    ("update_config", Object(&UPDATE)),
    ("rollback_config", Object(&UPDATE)),
    ("resources", Part(&RESOURCES)),
    ("restart_policy", Object(&RESTART)),
    ("placement", Part(&PLACEMENT)),
    ("endpoint_mode", Text),
]);
static UPDATE: Form = form(&[
    ("parallelism", GivenWhole),
    ("delay", Time),
    ("failure_action", Text),
    ("monitor", Time),
    ("max_failure_ratio", Ratio),
    ("order", Text),
]);
static RESOURCES: Form = form(&[("limits", Object(&RESOURCE)), ("reservations", Object(&RESOURCE))]);
static RESOURCE: Form = form(&[
    ("cpus", Ratio),
    ("memory", Bytes),
    ("pids", Whole),
    ("devices", Items(&DEVICE_REQUEST)),
    ("generic_resources", Items(&GENERIC_RESOURCE)),
]);
static GENERIC_RESOURCE: Form = form(&[("discrete_resource_spec", Object(&DISCRETE_RESOURCE))]);
static DISCRETE_RESOURCE: Form = form(&[("kind", AlwaysText), ("value", AlwaysWhole)]);
static DEVICE_REQUEST: Form = form(&[
    ("capabilities", Texts),
    ("driver", Text),
    ("count", Count),
    ("device_ids", Texts),
    ("options", Labels),
]);
static RESTART: Form =
    form(&[("condition", Text), ("delay", GivenTime), ("max_attempts", GivenWhole), ("window", GivenTime)]);
static PLACEMENT: Form =
    form(&[("constraints", Texts), ("preferences", Items(&PREFERENCE)), ("max_replicas_per_node", Whole)]);
static PREFERENCE: Form = form(&[("spread", Text)]);
static DEVICE: Form = form(&[("source", Text), ("target", Text), ("permissions", Text)]);
static PROVIDER: Form = form(&[("type", Text), ("options", Repeated)]);
static ENV_FILE: Form = form(&[("path", Text), ("required", OptOut), ("format", Text)]);
static EXTENDS: Form = form(&[("file", Text), ("service", Text)]);
static HEALTHCHECK: Form = form(&[
    ("test", Test),
    ("timeout", GivenTime),
    ("interval", GivenTime),
    ("retries", GivenWhole),
    ("start_period", GivenTime),
    ("start_interval", GivenTime),
    ("disable", Flag),
]);
static LOGGING: Form = form(&[("driver", Text), ("options", Labels)]);
static MODEL_USE: Form = form(&[("endpoint_var", Text), ("model_var", Text)]);
static ATTACHMENT: Form = form(&[
    ("aliases", Texts),
    ("driver_opts", Labels),
    ("gw_priority", Whole),
    ("interface_name", Text),
    ("ipv4_address", Text),
    ("ipv6_address", Text),
    ("link_local_ips", Texts),
    ("mac_address", Text),
    ("priority", Whole),
]);
static PORT: Form = form(&[
    ("name", Text),
    ("mode", Text),
    ("host_ip", Text),
    ("target", Whole),
    ("published", Text),
    ("protocol", Text),
    ("app_protocol", Text),
]);
static MOUNT: Form = form(&[
    ("type", Text),
    ("source", Text),
    ("target", Text),
    ("read_only", Flag),
    ("consistency", Text),
    ("bind", Object(&MOUNT_BIND)),
    ("volume", Object(&MOUNT_VOLUME)),
    ("tmpfs", Object(&MOUNT_TMPFS)),
    ("image", Object(&MOUNT_IMAGE)),
]);
static MOUNT_BIND: Form =
    form(&[("selinux", Text), ("propagation", Text), ("create_host_path", OptOut), ("recursive", Text)]);
static MOUNT_VOLUME: Form = form(&[("labels", Labels), ("nocopy", Flag), ("subpath", Text)]);
static MOUNT_TMPFS: Form = form(&[("size", Bytes), ("mode", Whole)]);
static MOUNT_IMAGE: Form = form(&[("subpath", Text)]);

static NETWORK: Form = form(&[
    ("name", Text),
    ("driver", Text),
    ("driver_opts", Labels),
    ("ipam", Part(&IPAM)),
    ("external", Flag),
    ("internal", Flag),
    ("attachable", Flag),
    ("labels", Labels),
    ("enable_ipv4", Choice),
    ("enable_ipv6", Choice),
]);
static IPAM: Form = form(&[("driver", Text), ("config", Items(&IPAM_POOL)), ("options", Labels)]);
static IPAM_POOL: Form =
    form(&[("subnet", Text), ("gateway", Text), ("ip_range", Text), ("aux_addresses", Labels)]);
static VOLUME: Form = form(&[
    ("name", Text),
    ("driver", Text),
    ("driver_opts", Labels),
    ("external", Flag),
    ("labels", Labels),
]);
/// The content of a secret is never printed.
static SECRET: Form = form(&[
    ("name", Text),
    ("file", Text),
    ("environment", Text),
    ("external", Flag),
    ("labels", Labels),
    ("driver", Text),
    ("driver_opts", Labels),
    ("template_driver", Text),
]);
static CONFIG: Form = form(&[
    ("name", Text),
    ("file", Text),
    ("environment", Text),
    ("content", Text),
    ("external", Flag),
    ("labels", Labels),
    ("template_driver", Text),
]);
static MODEL: Form =
    form(&[("name", Text), ("model", Text), ("context_size", Whole), ("runtime_flags", Texts)]);
