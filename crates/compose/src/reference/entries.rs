//! The entries of the reference, in the order of the specification's tables.
//!
//! Texts are about what a user sees. "The engine's X" is the field of `docker inspect`.

use super::{Section, honoured, partly, refused, without_effect};

/// Files that samples name.
pub(super) const FILES: &[(&str, &str)] = &[
    ("vars.env", "A=1\n"),
    ("more.yaml", "services: {more: {image: 'i:1'}}\n"),
    ("base.yaml", "services: {base: {image: 'i:1'}}\n"),
    ("token", "t\n"),
    ("profile.json", "{}"),
    ("Dockerfile", "FROM scratch\n"),
];

/// What must stand elsewhere in a file so that an attribute means something: by the beginning of its path.
pub(super) const BESIDE: &[(&str, &str)] = &[
    ("include[]", r#"{"include": [{"path": "more.yaml"}]}"#),
    ("models", r#"{"models": {"named": {"model": "m"}}}"#),
    ("networks.*", r#"{"services": {"it": {"networks": {"named": null}}}, "networks": {"named": {}}}"#),
    ("volumes", r#"{"volumes": {"named": {}}}"#),
    ("secrets", r#"{"services": {"it": {"secrets": ["named"]}}, "secrets": {"named": {}}}"#),
    ("secrets.*.name", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("secrets.*.labels", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("secrets.*.driver", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("secrets.*.driver_opts", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("secrets.*.template_driver", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("configs", r#"{"services": {"it": {"configs": ["named"]}}, "configs": {"named": {}}}"#),
    ("configs.*.name", r#"{"configs": {"named": {"content": "x"}}}"#),
    ("configs.*.labels", r#"{"configs": {"named": {"content": "x"}}}"#),
    ("configs.*.template_driver", r#"{"configs": {"named": {"content": "x"}}}"#),
    ("services.*.networks", r#"{"networks": {"named": {}}}"#),
    ("services.*.volumes", r#"{"volumes": {"named": {}}}"#),
    (
        "services.*.volumes[]",
        r#"{"services": {"it": {"volumes": [{"type": "volume", "source": "named", "target": "/x"}]}}}"#,
    ),
    (
        "services.*.volumes[].bind",
        r#"{"services": {"it": {"volumes": [{"type": "bind", "source": "/dev", "target": "/x"}]}}}"#,
    ),
    (
        "services.*.volumes[].tmpfs",
        r#"{"services": {"it": {"volumes": [{"type": "tmpfs", "source": "", "target": "/x"}]}}}"#,
    ),
    (
        "services.*.volumes[].image",
        r#"{"services": {"it": {"volumes": [{"type": "image", "source": "i:1", "target": "/x"}]}}}"#,
    ),
    ("services.*.configs", r#"{"configs": {"named": {"content": "x"}}}"#),
    ("services.*.configs[]", r#"{"services": {"it": {"configs": [{"source": "named"}]}}}"#),
    ("services.*.secrets", r#"{"secrets": {"named": {"content": "x"}}}"#),
    ("services.*.secrets[]", r#"{"services": {"it": {"secrets": [{"source": "named"}]}}}"#),
    ("services.*.ports[]", r#"{"services": {"it": {"ports": [{"target": 80}]}}}"#),
    ("services.*.env_file[]", r#"{"services": {"it": {"env_file": [{"path": "vars.env"}]}}}"#),
    ("services.*.extends", r#"{"services": {"it": {"extends": {"service": "other"}}}}"#),
    ("services.*.extends.file", r#"{"services": {"it": {"extends": {"service": "base"}}}}"#),
    (
        "services.*.depends_on.*",
        r#"{"services": {"it": {"depends_on": {"other": {"condition": "service_started"}}}}}"#,
    ),
    ("services.*.devices[]", r#"{"services": {"it": {"devices": [{"source": "/dev/null"}]}}}"#),
    ("services.*.ulimits.*", r#"{"services": {"it": {"ulimits": {"nofile": {"soft": 1, "hard": 2}}}}}"#),
    (
        "services.*.blkio_config.weight_device[]",
        r#"{"services": {"it": {"blkio_config": {"weight_device": [{"path": "/dev/sda", "weight": 10}]}}}}"#,
    ),
    (
        "services.*.blkio_config.device_read_bps[]",
        r#"{"services": {"it": {"blkio_config": {"device_read_bps": [{"path": "/dev/sda", "rate": 10}]}}}}"#,
    ),
    (
        "services.*.blkio_config.device_read_iops[]",
        r#"{"services": {"it": {"blkio_config": {"device_read_iops": [{"path": "/dev/sda", "rate": 10}]}}}}"#,
    ),
    (
        "services.*.blkio_config.device_write_bps[]",
        r#"{"services": {"it": {"blkio_config": {"device_write_bps": [{"path": "/dev/sda", "rate": 10}]}}}}"#,
    ),
    (
        "services.*.blkio_config.device_write_iops[]",
        r#"{"services": {"it": {"blkio_config": {"device_write_iops": [{"path": "/dev/sda", "rate": 10}]}}}}"#,
    ),
    (
        "services.*.deploy.resources.reservations.devices[]",
        r#"{"services": {"it": {"deploy": {"resources": {"reservations": {"devices": [{"capabilities": ["gpu"]}]}}}}}}"#,
    ),
    ("services.*.pre_start[]", r#"{"services": {"it": {"pre_start": [{"command": "a"}]}}}"#),
    ("services.*.post_start[]", r#"{"services": {"it": {"post_start": [{"command": "a"}]}}}"#),
    ("services.*.pre_stop[]", r#"{"services": {"it": {"pre_stop": [{"command": "a"}]}}}"#),
    ("services.*.provider", r#"{"services": {"it": {"provider": {"type": "p"}}}}"#),
    ("services.*.models", r#"{"models": {"named": {"model": "m"}}}"#),
    ("services.*.healthcheck", r#"{"services": {"it": {"healthcheck": {"interval": "1s"}}}}"#),
    (
        "services.*.networks.*.ipv6_address",
        r#"{"networks": {"named": {"enable_ipv6": true, "ipam": {"config": [{"subnet": "fd00:5::/64"}]}}}}"#,
    ),
    ("services.*.networks.*.link_local_ips", r#"{"networks": {"named": {"enable_ipv6": true}}}"#),
    (
        "networks.*.ipam.config[]",
        r#"{"networks": {"named": {"ipam": {"config": [{"subnet": "10.5.0.0/24"}]}}}}"#,
    ),
    (
        "services.*.build.secrets",
        r#"{"secrets": {"named": {"content": "x"}}, "services": {"it": {"build": {"context": "."}}}}"#,
    ),
    ("services.*.build.secrets[]", r#"{"services": {"it": {"build": {"secrets": [{"source": "named"}]}}}}"#),
    (
        "services.*.build.ulimits.*",
        r#"{"services": {"it": {"build": {"ulimits": {"nofile": {"soft": 1, "hard": 2}}}}}}"#,
    ),
    ("services.*.pull_refresh_after", r#"{"services": {"it": {"pull_policy": "refresh"}}}"#),
    (
        "services.*.volumes[].bind.recursive",
        r#"{"services": {"it": {"volumes": [{"type": "bind", "source": "/dev", "target": "/x", "read_only": true}]}}}"#,
    ),
];

const GPU: &str = "one of the engine's `DeviceRequests`; of GPUs, for those that the task was given";

const PLACES: &[&str] = &["attributes", "apps::tasks_run_where_constraints_say_and_global_ones_everywhere"];
const RETURNS: &[&str] = &["apps::a_release_that_fails_returns_to_the_one_before_and_serves_all_the_while"];
const PULLS: &[&str] = &["choose::an_image_is_asked_for_again_once_it_is_old"];
const RATIO: &[&str] = &["scenarios::an_update_bears_with_as_many_failures_as_the_file_allows"];
const ROLLBACK: &[&str] = &["scenarios::a_return_goes_as_the_file_says_returns_go"];
const AUX: &[&str] = &["network::a_network_keeps_to_its_range_its_gateway_and_what_it_reserves"];
const IPV6: &[&str] = &["ipv6::a_network_with_ipv6_is_as_its_file_says"];
const BUILDS: &[&str] = &["build::every_option_reaches_the_engine"];
const HOOKS: &[&str] = &["tests::a_task_runs_once_its_hooks_have_succeeded"];
const KEPT: &[&str] = &["cli::secrets_and_configs_of_an_environment_reach_the_containers_that_mount_them"];
const ORDER: &[&str] =
    &["attributes", "apps::services_start_when_what_they_depend_on_is_as_far_as_it_must_be"];

pub(super) static SECTIONS: &[Section] = &[
    Section {
        title: "The file",
        attributes: &[
            without_effect("version", "obsolete, as in Docker Compose").takes(&[r#""3.8""#]),
            honoured("name", "the app's name; containers are called NAME-SERVICE-SLOT").takes(&[r#""app""#]),
            honoured("include", "the files' services, networks, volumes, configs and secrets join the app")
                .takes(&[r#"["more.yaml"]"#]),
            honoured("include[].path", "one file, or several that merge").takes(&[r#""more.yaml""#, r#"["more.yaml", "base.yaml"]"#]),
            honoured("include[].env_file", "variables for interpolation in the included files").takes(&[r#""vars.env""#]),
            honoured("include[].project_directory", "where the included files' relative paths begin").takes(&[r#"".""#]),
            honoured("services", "each becomes tasks, and each task a container")
                .many("spread over the nodes that can take them")
                .takes(&[r#"{"a": {"image": "i:1"}}"#]),
            refused("jobs").refuses(&[r#"{"once": {"image": "i:1"}}"#]),
    refused("models").refuses(&[r#"{"m": {"model": "a/b"}}"#]),
            honoured("networks", "a bridge network of the engine, for those that services use")
                .many("one network over all nodes: bridges joined by VXLAN or another [backend](../howto/networks.md), one subnet, each task with an address of its own"),
            honoured("volumes", "a volume of the engine whose folder the agent keeps")
                .many("on the node where the task first ran; its tasks stay with it"),
            honoured("secrets", "sealed in the store; a file in memory for the services that name it")
                .many("sent only to nodes that run such a task")
                .takes(&[r#"{"named": {"content": "x"}}"#]),
            honoured("configs", "sealed in the store; a file for the services that name it")
                .many("sent only to nodes that run such a task")
                .takes(&[r#"{"named": {"content": "x"}}"#]),
        ],
    },
    Section {
        title: "Services: what runs",
        attributes: &[
            honoured("services.*.image", "each release pins it by digest; the container is made from that")
                .many("every node runs the same digest")
                .takes(&[r#""nginx:1.29""#]),
            honoured("services.*.build", "the image is built by an engine of the cluster and tagged by the git commit")
                .many("by one node; the others get it from there, without a registry")
                .takes(&[r#"{"context": "."}"#, r#"".""#]).shown_by(&["attributes", "builds::what_is_built_on_one_node_runs_on_all_of_them"]),
            honoured("services.*.build.context", "a folder, sent without what `.dockerignore` names, or a repository that the engine fetches").takes(&[r#"".""#]),
            honoured("services.*.build.dockerfile", "its name in the context"),
            honoured("services.*.build.dockerfile_inline", "the Dockerfile itself"),
            honoured("services.*.build.args", "`ARG`s; a bare name is taken from the caller's environment").takes(&[r#"{"A": "1"}"#]),
            honoured("services.*.build.labels", "the image's labels").takes(&[r#"{"a": "b"}"#]),
            honoured("services.*.build.target", "the stage to build"),
            honoured("services.*.build.no_cache", "every step runs anew").shown_by(BUILDS),
            honoured("services.*.build.pull", "base images are asked for anew").shown_by(BUILDS),
            honoured("services.*.build.shm_size", "of the steps"),
            honoured("services.*.build.ulimits", "of the steps").takes(&[r#"{"nofile": 1000}"#]),
            honoured("services.*.build.ulimits.*.soft", "what a process of a step begins with").takes(&["1"]),
            honoured("services.*.build.ulimits.*.hard", "how far it may raise it").takes(&["3"]),
            honoured("services.*.build.tags", "further tags on the building node").shown_by(BUILDS),
            honoured("services.*.build.extra_hosts", "names that the steps know").takes(&[r#"{"a": "1.2.3.4"}"#]),
            partly("services.*.build.network", "`host` or `none`, of the steps", &[r#""backend""#]).takes(&[r#""host""#, r#""none""#]),
            partly("services.*.build.cache_from", "images", &[r#"["type=gha"]"#]).takes(&[r#"["a:b"]"#]).shown_by(BUILDS),
            partly("services.*.build.cache_to", "`type=inline`", &[r#"["type=local,dest=x"]"#]).takes(&[r#"["type=inline"]"#]).shown_by(BUILDS),
            partly("services.*.build.platforms", "one", &[r#"["linux/amd64", "linux/arm64"]"#]).takes(&[r#"["linux/amd64"]"#]).shown_by(BUILDS),
            honoured("services.*.build.secrets", "secrets of the file that are not external, for `RUN --mount=type=secret`").takes(&[r#"["named"]"#]),
            honoured("services.*.build.secrets[].source", "a secret of the file").takes(&[r#""named""#]),
            honoured("services.*.build.secrets[].target", "the id under which steps find it"),
            without_effect("services.*.build.secrets[].uid", "steps choose it themselves"),
            without_effect("services.*.build.secrets[].gid", "steps choose it themselves"),
            without_effect("services.*.build.secrets[].mode", "steps choose it themselves"),
            partly("services.*.build.additional_contexts", "folders, `docker-image://NAME`, `service:NAME`", &[r#"{"a": "https://example.com/a.git"}"#]).takes(&[r#"{"a": "docker-image://b"}"#]).shown_by(BUILDS),
            partly("services.*.build.entitlements", "`network.host`", &[r#"["security.insecure"]"#]).takes(&[r#"["network.host"]"#]).shown_by(BUILDS),
            partly("services.*.build.isolation", "`default`", &[r#""hyperv""#]).takes(&[r#""default""#]).shown_by(BUILDS),
            partly("services.*.build.privileged", "`false`", &["true"]).takes(&["false"]).shown_by(BUILDS),
            partly("services.*.build.provenance", "`false`", &["true"]).takes(&["false"]).shown_by(BUILDS),
            partly("services.*.build.sbom", "`false`", &["true"]).takes(&["false"]).shown_by(BUILDS),
            refused("services.*.build.ssh").refuses(&[r#"["default"]"#]),
            refused("services.*.build.no_cache_filter"),
            honoured("services.*.pull_policy", "`always`, `missing`, `if_not_present`, `never`, `build`; `daily`, `weekly`, `every_…` and `refresh` ask the registry again when what is known is older")
                .many("each node that gets a task pulls the pinned digest if it lacks it")
                .takes(&[r#""always""#, r#""never""#, r#""missing""#, r#""if_not_present""#, r#""daily""#, r#""every_12h""#, r#""build""#]),
            honoured("services.*.pull_refresh_after", "how old an answer may be with `pull_policy: refresh`").takes(&[r#""24h""#])
                .shown_by(PULLS),
            honoured("services.*.platform", "the node must be of this platform")
                .many("only nodes of this platform get its tasks")
                .takes(&[r#""linux/amd64""#]),
            honoured("services.*.command", "the engine's `Config.Cmd`; a text is split as Compose does").takes(&[r#""a b""#, r#"["a"]"#, "[]", "null"]),
            honoured("services.*.entrypoint", "the engine's `Config.Entrypoint`; an empty one clears the image's").takes(&[r#""a b""#, "[]"]),
            honoured("services.*.working_dir", "the engine's `Config.WorkingDir`"),
            honoured("services.*.user", "the engine's `Config.User`"),
            honoured("services.*.hostname", "the engine's `Config.Hostname`; without it the task's name"),
            honoured("services.*.domainname", "the engine's `Config.Domainname`"),
            honoured("services.*.tty", "the engine's `Config.Tty`"),
            honoured("services.*.stdin_open", "the engine's `Config.OpenStdin`"),
            honoured("services.*.init", "the engine's `HostConfig.Init`"),
            honoured("services.*.read_only", "the engine's `HostConfig.ReadonlyRootfs`"),
            honoured("services.*.environment", "the engine's `Config.Env`; a bare name is taken from the caller's environment, or removed from the image's")
                .takes(&[r#"{"A": "1", "B": 2, "C": true, "D": null}"#, r#"["A=1", "B"]"#]),
            honoured("services.*.env_file", "variables of files that lie beside the Compose file; `environment` wins").takes(&[r#""vars.env""#, r#"["vars.env"]"#]),
            honoured("services.*.env_file[].path", "read where `wharf` is called, so that nodes need no files").takes(&[r#""vars.env""#]),
            honoured("services.*.env_file[].required", "a file that may be absent").takes(&["true", "false"]),
            honoured("services.*.env_file[].format", "`raw` takes values as they stand").takes(&[r#""raw""#]),
            honoured("services.*.labels", "the container's labels, beside Wharf's own").takes(&[r#"{"a": "b"}"#, r#"["a=b"]"#]),
            honoured("services.*.label_file", "labels from files; `labels` wins").takes(&[r#""vars.env""#]),
            honoured("services.*.annotations", "the engine's `HostConfig.Annotations`; Docker Engine 24 or later, older ones refuse with a hint").takes(&[r#"{"a": "b"}"#])
                .shown_by(&["attributes", "spec::what_the_engine_is_too_old_for_is_refused_with_a_hint"]),
            honoured("services.*.profiles", "a service with profiles runs if one is active (`--profile`)").takes(&["[]"]),
            honoured("services.*.extends", "the service begins as another one").takes(&[r#""other""#]),
            honoured("services.*.extends.service", "which one").takes(&[r#""other""#]),
            honoured("services.*.extends.file", "in another file").takes(&[r#""base.yaml""#]),
        ],
    },
    Section {
        title: "Services: how a container is confined",
        attributes: &[
            honoured("services.*.privileged", "the engine's `HostConfig.Privileged`"),
            honoured("services.*.cap_add", "the engine's `HostConfig.CapAdd`"),
            honoured("services.*.cap_drop", "the engine's `HostConfig.CapDrop`"),
            honoured("services.*.security_opt", "the engine's `HostConfig.SecurityOpt`; a seccomp profile is a file beside the Compose file, JSON, or `unconfined`")
                .takes(&[r#"["no-new-privileges:true"]"#, r#"["seccomp=unconfined"]"#, r#"["seccomp:profile.json"]"#]),
            honoured("services.*.group_add", "the engine's `HostConfig.GroupAdd`"),
            honoured("services.*.devices", "a device of the host by its path, `HostConfig.Devices`, or by a name of the Container Device Interface (Docker Engine 25 or later, older ones refuse with a hint)")
                .many("of the node that runs the task: choose it by `deploy.placement`")
                .takes(&[r#"["/dev/null:/dev/x:r"]"#, r#"["vendor.com/gpu=0"]"#])
                .shown_by(&["attributes", "spec::devices_are_paths_or_names_of_a_device_interface"]),
            honoured("services.*.devices[].source", "its path on the node").takes(&[r#""/dev/null""#]),
            honoured("services.*.devices[].target", "its path in the container"),
            honoured("services.*.devices[].permissions", "`r`, `w` and `m`").takes(&[r#""r""#]),
            honoured("services.*.device_cgroup_rules", "the engine's `HostConfig.DeviceCgroupRules`").takes(&[r#"["c 1:3 mr"]"#]),
            partly("services.*.ipc", "`host`, `none`, `private`, `shareable`, `service:NAME`: the engine's `HostConfig.IpcMode`", &[r#""container:x""#])
                .many("`service:NAME` runs beside a task of that service and moves with it")
                .takes(&[r#""host""#, r#""none""#, r#""private""#, r#""shareable""#, r#""service:other""#]),
            partly("services.*.pid", "`host`, `service:NAME`: the engine's `HostConfig.PidMode`", &[r#""container:x""#])
                .many("`service:NAME` runs beside a task of that service and moves with it")
                .takes(&[r#""host""#, r#""service:other""#]),
            honoured("services.*.uts", "`host`: the engine's `HostConfig.UTSMode`").takes(&[r#""host""#]),
            honoured("services.*.userns_mode", "`host`: the engine's `HostConfig.UsernsMode`").takes(&[r#""host""#]),
            honoured("services.*.cgroup", "`host` or `private`: the engine's `HostConfig.CgroupnsMode`"),
            honoured("services.*.cgroup_parent", "the engine's `HostConfig.CgroupParent`"),
            honoured("services.*.shm_size", "the engine's `HostConfig.ShmSize`"),
            honoured("services.*.sysctls", "the engine's `HostConfig.Sysctls`").takes(&[r#"{"net.core.somaxconn": 1024}"#, r#"["net.core.somaxconn=1024"]"#]),
            honoured("services.*.ulimits", "the engine's `HostConfig.Ulimits`; a number is both limits").takes(&[r#"{"nproc": 65535}"#]),
            honoured("services.*.ulimits.*.soft", "what a process begins with").takes(&["1"]),
            honoured("services.*.ulimits.*.hard", "how far it may raise it").takes(&["3"]),
            honoured("services.*.runtime", "the engine's `HostConfig.Runtime`").many("every node that may run it needs the runtime"),
            honoured("services.*.storage_opt", "the engine's `HostConfig.StorageOpt`; refused by engines whose storage knows no sizes").takes(&[r#"{"size": "1G"}"#]),
            refused("services.*.isolation"),
            refused("services.*.credential_spec").refuses(&[r#"{"file": "f"}"#]),
            refused("services.*.use_api_socket"),
        ],
    },
    Section {
        title: "Services: what a container may use",
        attributes: &[
            honoured("services.*.cpus", "the engine's `HostConfig.NanoCpus`; says the same as `deploy.resources.limits.cpus`"),
            honoured("services.*.mem_limit", "the engine's `HostConfig.Memory`; says the same as `deploy.resources.limits.memory`"),
            honoured("services.*.mem_reservation", "the engine's `HostConfig.MemoryReservation`")
                .many("a node takes the task only if it has as much left"),
            honoured("services.*.memswap_limit", "the engine's `HostConfig.MemorySwap`; `-1` is no limit").takes(&[r#""64m""#, "-1"]),
            honoured("services.*.mem_swappiness", "the engine's `HostConfig.MemorySwappiness`"),
            honoured("services.*.pids_limit", "the engine's `HostConfig.PidsLimit`; says the same as `deploy.resources.limits.pids`"),
            honoured("services.*.cpu_shares", "the engine's `HostConfig.CpuShares`"),
            honoured("services.*.cpu_period", "the engine's `HostConfig.CpuPeriod`").takes(&["100000", r#""100ms""#]),
            honoured("services.*.cpu_quota", "the engine's `HostConfig.CpuQuota`").takes(&["50000", r#""50ms""#]),
            honoured("services.*.cpu_rt_period", "the engine's `HostConfig.CpuRealtimePeriod`; refused by engines whose kernel has no real-time groups").takes(&["1000"]),
            honoured("services.*.cpu_rt_runtime", "the engine's `HostConfig.CpuRealtimeRuntime`; refused by engines whose kernel has no real-time groups").takes(&["1000"]),
            refused("services.*.cpu_count"),
            refused("services.*.cpu_percent"),
            honoured("services.*.cpuset", "the engine's `HostConfig.CpusetCpus`").takes(&[r#""0""#]),
            honoured("services.*.blkio_config", "the engine's block I/O limits").takes(&[r#"{"weight": 300}"#]),
            honoured("services.*.blkio_config.weight", "the engine's `HostConfig.BlkioWeight`; engines whose kernel has no such weight leave it out").takes(&["300"]),
            honoured("services.*.blkio_config.weight_device", "the engine's `HostConfig.BlkioWeightDevice`; engines whose kernel has no such weight leave it out").takes(&["[]"]),
            honoured("services.*.blkio_config.weight_device[].path", "a device of the node").takes(&[r#""/dev/sda""#]),
            honoured("services.*.blkio_config.weight_device[].weight", "10 to 1000").takes(&["10"]),
            honoured("services.*.blkio_config.device_read_bps", "the engine's `HostConfig.BlkioDeviceReadBps`").takes(&["[]"]),
            honoured("services.*.blkio_config.device_read_bps[].path", "a device of the node").takes(&[r#""/dev/sda""#]),
            honoured("services.*.blkio_config.device_read_bps[].rate", "bytes in a second"),
            honoured("services.*.blkio_config.device_read_iops", "the engine's `HostConfig.BlkioDeviceReadIOps`").takes(&["[]"]),
            honoured("services.*.blkio_config.device_read_iops[].path", "a device of the node").takes(&[r#""/dev/sda""#]),
            honoured("services.*.blkio_config.device_read_iops[].rate", "operations in a second"),
            honoured("services.*.blkio_config.device_write_bps", "the engine's `HostConfig.BlkioDeviceWriteBps`").takes(&["[]"]),
            honoured("services.*.blkio_config.device_write_bps[].path", "a device of the node").takes(&[r#""/dev/sda""#]),
            honoured("services.*.blkio_config.device_write_bps[].rate", "bytes in a second"),
            honoured("services.*.blkio_config.device_write_iops", "the engine's `HostConfig.BlkioDeviceWriteIOps`").takes(&["[]"]),
            honoured("services.*.blkio_config.device_write_iops[].path", "a device of the node").takes(&[r#""/dev/sda""#]),
            honoured("services.*.blkio_config.device_write_iops[].rate", "operations in a second"),
            honoured("services.*.oom_kill_disable", "the engine's `HostConfig.OomKillDisable`"),
            honoured("services.*.oom_score_adj", "the engine's `HostConfig.OomScoreAdj`"),
            honoured("services.*.gpus", "the engine's `HostConfig.DeviceRequests`, with the capability `gpu`")
                .many("only nodes that have as many left get the task, and no two tasks the same one; [devices](../howto/devices.md)")
                .takes(&[r#""all""#, r#"[{"count": 1}]"#]),
            honoured("services.*.gpus[].capabilities", GPU),
            honoured("services.*.gpus[].count", GPU).takes(&["1", r#""all""#]),
            honoured("services.*.gpus[].device_ids", GPU),
            honoured("services.*.gpus[].driver", GPU),
            honoured("services.*.gpus[].options", GPU),
        ],
    },
    Section {
        title: "Services: names and connections",
        attributes: &[
            honoured("services.*.networks", "the container is on them; without any, on `default`")
                .many("with an address of its own that holds on every node")
                .takes(&[r#"["named"]"#, r#"{"named": null}"#]),
            honoured("services.*.networks.*.aliases", "further names of the service, answered by the node's DNS").takes(&[r#"["a"]"#]),
            honoured("services.*.networks.*.ipv4_address", "its address; one replica only").takes(&[r#""10.1.2.3""#]),
            honoured("services.*.networks.*.ipv6_address", "its IPv6 address; one replica only, on a network with an IPv6 subnet")
                .takes(&[r#""fd00:5::7""#])
                .many("otherwise it follows from the IPv4 address")
                .shown_by(IPV6),
            honoured("services.*.networks.*.link_local_ips", "the endpoint's `IPAMConfig.LinkLocalIPs`; IPv6 ones on a network with IPv6")
                .takes(&[r#"["169.254.8.8"]"#, r#"["fe80::1"]"#]),
            honoured("services.*.networks.*.mac_address", "the endpoint's `MacAddress`; one replica only; Docker Engine 25 or later, older ones refuse with a hint")
                .takes(&[r#""02:42:ac:11:00:02""#])
                .shown_by(&["attributes", "spec::a_connection_is_made_as_its_service_says_or_not_at_all"]),
            honoured("services.*.networks.*.interface_name", "the interface's name in the container; Docker Engine 28 or later, older ones refuse with a hint")
                .takes(&[r#""eth5""#])
                .shown_by(&["attributes", "spec::a_connection_is_made_as_its_service_says_or_not_at_all"]),
            honoured("services.*.networks.*.driver_opts", "the endpoint's `DriverOpts`"),
            honoured("services.*.networks.*.priority", "networks are connected in this order; the first has the default route"),
            honoured("services.*.networks.*.gw_priority", "the endpoint's `GwPriority`; Docker Engine 28 or later, older ones refuse with a hint")
                .shown_by(&["attributes", "spec::a_connection_is_made_as_its_service_says_or_not_at_all"]),
            partly("services.*.network_mode", "`host`, `none`, `bridge`, `service:NAME`: the engine's `HostConfig.NetworkMode`", &[r#""container:x""#])
                .many("`service:NAME` runs beside a task of that service and moves with it; `bridge` is each node's own, and is warned of")
                .takes(&[r#""host""#, r#""none""#, r#""bridge""#, r#""service:other""#]),
            honoured("services.*.ports", "a published port: the gateway listens and passes on to ready tasks")
                .many("on the gateway of every node")
                .takes(&[r#"["8080:80"]"#, r#"["127.0.0.1:8080:80/udp", 80]"#]),
            honoured("services.*.ports[].target", "the port in the container").takes(&["80"]),
            honoured("services.*.ports[].published", "the port outside; the first free one of a range; without one the cluster chooses")
                .many("the same on every node")
                .takes(&[r#""8080""#, "8080", r#""8080-8090""#]),
            partly("services.*.ports[].protocol", "`tcp` or `udp`", &[r#""sctp""#]).takes(&[r#""tcp""#, r#""udp""#]),
            honoured("services.*.ports[].mode", "`ingress`: by the gateway; `host`: by the engine, as `HostConfig.PortBindings`")
                .many("`host`: only on nodes that run a task, one task of it on a node")
                .takes(&[r#""ingress""#, r#""host""#]),
            honoured("services.*.ports[].host_ip", "the address that listens")
                .many("on the nodes that have it")
                .takes(&[r#""127.0.0.1""#]),
            honoured("services.*.ports[].name", "kept with the port, shown by `wharf service inspect`; containers know nothing of it"),
            honoured("services.*.ports[].app_protocol", "kept with the port, shown by `wharf service inspect`; containers know nothing of it"),
            honoured("services.*.expose", "the engine's `Config.ExposedPorts`").takes(&[r#"["80"]"#]),
            honoured("services.*.links", "started first, and found under the alias").takes(&[r#"["other"]"#, r#"["other:alias"]"#]),
            refused("services.*.external_links").refuses(&[r#"["a:b"]"#]),
            honoured("services.*.dns", "servers that are asked for what is not of the cluster ([how](names.md))")
                .takes(&[r#""1.1.1.1""#, r#"["1.1.1.1", "::1"]"#]),
            honoured("services.*.dns_search", "the engine's `HostConfig.DnsSearch`").takes(&[r#""a.example""#, r#"["a.example"]"#]),
            honoured("services.*.dns_opt", "the engine's `HostConfig.DnsOptions`").takes(&[r#"["ndots:1"]"#]),
            honoured("services.*.extra_hosts", "the engine's `HostConfig.ExtraHosts`; `host-gateway` is the node")
                .takes(&[r#"{"a": "1.2.3.4"}"#, r#"["a=1.2.3.4", "b:host-gateway"]"#]),
            honoured("services.*.mac_address", "that on the network it is connected to first; Docker Engine 25 or later, older ones refuse with a hint")
                .takes(&[r#""02:42:ac:11:00:02""#])
                .shown_by(&["attributes", "spec::a_connection_is_made_as_its_service_says_or_not_at_all"]),
            honoured("services.*.container_name", "a further name of the service, one replica only; containers are called NAME-SERVICE-SLOT-ID, since an old and a new one live side by side").takes(&[r#""named""#]),
        ],
    },
    Section {
        title: "Services: files",
        attributes: &[
            honoured("services.*.volumes", "the engine's `Mounts`")
                .many("a named volume stays on its node and so do its tasks; a bind is a path of the node that runs the task")
                .takes(&[r#"["named:/x"]"#, r#"["/dev:/y:ro"]"#]),
            partly("services.*.volumes[].type", "`volume`, `bind`, `tmpfs`; `image` with Docker Engine 28 or later", &[r#""npipe""#, r#""cluster""#])
                .takes(&[r#""volume""#, r#""image""#]),
            honoured("services.*.volumes[].source", "a named volume or a path").takes(&[r#""named""#]),
            honoured("services.*.volumes[].target", "a path in the container").takes(&[r#""/y""#]),
            honoured("services.*.volumes[].read_only", "nothing can be written there"),
            without_effect("services.*.volumes[].consistency", "it was for Docker Desktop"),
            honoured("services.*.volumes[].bind", "how a path of the node is mounted").takes(&["{}"]),
            honoured("services.*.volumes[].bind.propagation", "the mount's `Propagation`").takes(&[r#""rslave""#]),
            honoured("services.*.volumes[].bind.create_host_path", "a missing folder is made").many("on the node that runs the task"),
            honoured("services.*.volumes[].bind.recursive", "the mount's `BindOptions`; `writable` and `readonly` need Docker Engine 25 or later, older ones refuse with a hint")
                .takes(&[r#""enabled""#, r#""disabled""#])
                .shown_by(&["attributes", "spec::mounts_that_need_a_newer_engine_say_so"]),
            honoured("services.*.volumes[].bind.selinux", "the mount is relabelled: `z` or `Z`"),
            honoured("services.*.volumes[].volume", "how a volume is mounted").takes(&["{}"]),
            honoured("services.*.volumes[].volume.labels", "labels of the volume; those under `volumes` win").takes(&[r#"{"a": "b"}"#]),
            honoured("services.*.volumes[].volume.nocopy", "a new volume is not filled from the image"),
            honoured("services.*.volumes[].volume.subpath", "a folder of the volume; Docker Engine 26 or later, older ones refuse with a hint"),
            honoured("services.*.volumes[].tmpfs", "memory as a file system").takes(&["{}"]),
            honoured("services.*.volumes[].tmpfs.size", "its size"),
            honoured("services.*.volumes[].tmpfs.mode", "its mode").takes(&["448", r#""0700""#]),
            honoured("services.*.volumes[].image", "how an image is mounted; Docker Engine 28 or later, older ones refuse with a hint")
                .takes(&["{}"])
                .shown_by(&["attributes", "spec::mounts_that_need_a_newer_engine_say_so"]),
            honoured("services.*.volumes[].image.subpath", "a folder of the image").shown_by(&["attributes", "spec::mounts_that_need_a_newer_engine_say_so"]),
            honoured("services.*.tmpfs", "the engine's `HostConfig.Tmpfs`").takes(&[r#""/run""#, r#"["/run:size=64m"]"#]),
            partly("services.*.volumes_from", "the mounts of another service's container: the engine's `HostConfig.VolumesFrom`", &[r#"["container:x"]"#])
                .many("it runs beside a task of that service")
                .takes(&[r#"["other"]"#, r#"["other:ro"]"#]),
            honoured("services.*.configs", "each a file; by its name in `/`").takes(&[r#"["named"]"#]),
            honoured("services.*.configs[].source", "a config of the file").takes(&[r#""named""#]),
            honoured("services.*.configs[].target", "its path").takes(&[r#""/etc/x""#]),
            honoured("services.*.configs[].uid", "its owner").takes(&[r#""1000""#]),
            honoured("services.*.configs[].gid", "its group").takes(&[r#""1000""#]),
            honoured("services.*.configs[].mode", "its mode; 0444 if not given").takes(&[r#""0400""#, "256"]),
            honoured("services.*.secrets", "each a file in memory; by its name in `/run/secrets`").takes(&[r#"["named"]"#]),
            honoured("services.*.secrets[].source", "a secret of the file").takes(&[r#""named""#]),
            honoured("services.*.secrets[].target", "its path, or its name in `/run/secrets`").takes(&[r#""/etc/x""#, r#""x""#]),
            honoured("services.*.secrets[].uid", "its owner").takes(&[r#""1000""#]),
            honoured("services.*.secrets[].gid", "its group").takes(&[r#""1000""#]),
            honoured("services.*.secrets[].mode", "its mode; 0444 if not given").takes(&[r#""0400""#, "256"]),
        ],
    },
    Section {
        title: "Services: life",
        attributes: &[
            honoured("services.*.depends_on", "started in this order").takes(&[r#"["other"]"#]).shown_by(ORDER).many("wherever the tasks run"),
            honoured("services.*.depends_on.*.condition", "all three: started, healthy, completed")
                .takes(&[r#""service_started""#, r#""service_healthy""#, r#""service_completed_successfully""#])
                .shown_by(&["apps::services_start_when_what_they_depend_on_is_as_far_as_it_must_be"]),
            honoured("services.*.depends_on.*.restart", "replaced with it when `wharf restart` or a release replaces that service"),
            honoured("services.*.depends_on.*.required", "`false`: not awaited if it is not active or cannot come")
                .shown_by(&["attributes", "scenarios::an_optional_dependency_is_awaited_only_as_long_as_it_can_come"]),
            honoured("services.*.healthcheck", "run by the engine; routes and names lead only to healthy tasks").takes(&[r#"{"test": "true"}"#]),
            honoured("services.*.healthcheck.disable", "the image's check is switched off"),
            honoured("services.*.healthcheck.test", "the engine's `Config.Healthcheck.Test`").takes(&[r#""true""#, r#"["CMD", "true"]"#, r#"["NONE"]"#]),
            honoured("services.*.healthcheck.interval", "the engine's `Config.Healthcheck.Interval`"),
            honoured("services.*.healthcheck.timeout", "the engine's `Config.Healthcheck.Timeout`"),
            honoured("services.*.healthcheck.retries", "the engine's `Config.Healthcheck.Retries`"),
            honoured("services.*.healthcheck.start_period", "the engine's `Config.Healthcheck.StartPeriod`"),
            honoured("services.*.healthcheck.start_interval", "the engine's `Config.Healthcheck.StartInterval`; Docker Engine 25 or later, older ones refuse with a hint"),
            honoured("services.*.restart", "by the cluster, not by the engine, which has `no`; `deploy.restart_policy` wins")
                .many("a task of a lost node is started on another")
                .takes(&[r#""no""#, r#""always""#, r#""on-failure""#, r#""on-failure:3""#, r#""unless-stopped""#]),
            honoured("services.*.stop_signal", "the engine's `Config.StopSignal`").takes(&[r#""SIGINT""#]),
            honoured("services.*.stop_grace_period", "the engine's `Config.StopTimeout`, and how long a task may take to stop"),
            honoured("services.*.logging", "handed to the engine").takes(&["{}"]),
            honoured("services.*.logging.driver", "the engine's `HostConfig.LogConfig.Type`"),
            honoured("services.*.logging.options", "the engine's `HostConfig.LogConfig.Config`"),
            honoured("services.*.pre_start", "containers that run to their end, one after the other, before the service's first one: services of their own, NAME-pre-start-1 and so on")
                .takes(&[r#"[{"command": "a"}]"#]),
            honoured("services.*.pre_start[].command", "what it runs").takes(&[r#""a b""#, r#"["a"]"#]),
            honoured("services.*.pre_start[].image", "its image, if not the service's").takes(&[r#""i:2""#]),
            honoured("services.*.pre_start[].user", "as whom"),
            honoured("services.*.pre_start[].privileged", "the engine's `HostConfig.Privileged`"),
            honoured("services.*.pre_start[].working_dir", "where"),
            honoured("services.*.pre_start[].environment", "with these variables beside the service's").takes(&[r#"{"A": "1"}"#, r#"["A=1"]"#]),
            partly("services.*.pre_start[].per_replica", "`false`: once for the service", &["true"]).takes(&["false"]),
            honoured("services.*.post_start", "commands in the container before the task counts as running; one that fails fails the task").takes(&[r#"[{"command": "a"}]"#]),
            honoured("services.*.post_start[].command", "as one of `wharf exec`").takes(&[r#""a b""#, r#"["a"]"#]),
            honoured("services.*.post_start[].user", "as whom, if not as the container's own user"),
            honoured("services.*.post_start[].privileged", "with all capabilities").shown_by(HOOKS),
            honoured("services.*.post_start[].working_dir", "where"),
            honoured("services.*.post_start[].environment", "with these variables beside the container's").takes(&[r#"{"A": "1"}"#, r#"["A=1"]"#]),
            honoured("services.*.pre_stop", "commands in the container before its stop signal, within the grace period").takes(&[r#"[{"command": "a"}]"#]),
            honoured("services.*.pre_stop[].command", "as one of `wharf exec`").takes(&[r#""a b""#, r#"["a"]"#]),
            honoured("services.*.pre_stop[].user", "as whom, if not as the container's own user"),
            honoured("services.*.pre_stop[].privileged", "with all capabilities").shown_by(HOOKS),
            honoured("services.*.pre_stop[].working_dir", "where"),
            honoured("services.*.pre_stop[].environment", "with these variables beside the container's").takes(&[r#"{"A": "1"}"#, r#"["A=1"]"#]),
        ],
    },
    Section {
        title: "Services: about the machine of a developer",
        attributes: &[
            without_effect("services.*.attach", "it is about the terminal of `docker compose up`; choose services by `wharf logs NAME`"),
            without_effect("services.*.develop", "it is about files on the machine of a developer").takes(&[r#"{"watch": [{"path": ".", "action": "sync", "target": "/x"}]}"#]),
            refused("services.*.provider"),
            refused("services.*.models").refuses(&[r#"{"named": {"endpoint_var": "A", "model_var": "B"}}"#]),
        ],
    },
    Section {
        title: "Deployment",
        attributes: &[
            honoured("services.*.scale", "how many tasks; must agree with `deploy.replicas`").takes(&["2"]),
            honoured("services.*.deploy", "how it runs").takes(&["{}"]),
            partly("services.*.deploy.mode", "`replicated`; `global`: one", &[r#""replicated-job""#, r#""global-job""#])
                .many("`global`: one on every node that may take it")
                .takes(&[r#""replicated""#, r#""global""#])
                .shown_by(PLACES),
            honoured("services.*.deploy.replicas", "how many tasks, at most 10,000").many("spread over the nodes"),
            honoured("services.*.deploy.labels", "labels of the service, not of its containers, shown by `wharf service inspect`").takes(&[r#"{"a": "b"}"#]),
            honoured("services.*.deploy.endpoint_mode", "`dnsrr` (the default here): a name leads to the tasks' addresses; `vip`: to one address on each network, from which each new connection goes to one of the ready tasks ([how](../howto/published-ports.md#one-address-per-service))")
                .takes(&[r#""dnsrr""#, r#""vip""#]),
            honoured("services.*.deploy.update_config", "how a release replaces tasks").takes(&["{}"]),
            honoured("services.*.deploy.update_config.parallelism", "so many at a time; 0 is all"),
            honoured("services.*.deploy.update_config.delay", "the pause after each"),
            honoured("services.*.deploy.update_config.order", "`start-first` or `stop-first`; without it start-first where that is possible"),
            honoured("services.*.deploy.update_config.monitor", "a task that fails within it counts against the release"),
            honoured("services.*.deploy.update_config.failure_action", "`rollback` (the default), `pause`, `continue`")
                .takes(&[r#""rollback""#, r#""pause""#, r#""continue""#])
                .shown_by(RETURNS),
            honoured("services.*.deploy.update_config.max_failure_ratio", "so many of the tasks may fail without that being a failure of the release")
                .takes(&["0", "0.5"])
                .shown_by(RATIO),
            honoured("services.*.deploy.rollback_config", "how the return to an earlier release replaces tasks; as `update_config` without it").takes(&[r#"{"parallelism": 1}"#]).shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.parallelism", "so many at a time; 0 is all").shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.delay", "the pause after each").shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.order", "`start-first` or `stop-first`").shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.monitor", "a task that fails within it counts").shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.failure_action", "`pause`, `continue`").takes(&[r#""pause""#, r#""continue""#]).shown_by(ROLLBACK),
            honoured("services.*.deploy.rollback_config.max_failure_ratio", "so many of the tasks may fail").takes(&["0.5"]).shown_by(ROLLBACK),
            honoured("services.*.deploy.restart_policy", "when an ended task is started again; wins over `restart`").takes(&["{}"]),
            honoured("services.*.deploy.restart_policy.condition", "`any` (the default), `on-failure`, `none`").takes(&[r#""any""#, r#""on-failure""#, r#""none""#]),
            honoured("services.*.deploy.restart_policy.delay", "the pause before the first attempt; it grows with each"),
            honoured("services.*.deploy.restart_policy.max_attempts", "then the task stays ended"),
            honoured("services.*.deploy.restart_policy.window", "a task that held as long starts a clean record")
                .shown_by(&["scenarios::a_task_that_held_longer_than_the_window_starts_a_clean_record"]),
            honoured("services.*.deploy.resources", "what it may use and what is kept for it").takes(&["{}"]),
            honoured("services.*.deploy.resources.limits", "what it may use").takes(&["{}"]),
            honoured("services.*.deploy.resources.limits.cpus", "the engine's `HostConfig.NanoCpus`"),
            honoured("services.*.deploy.resources.limits.memory", "the engine's `HostConfig.Memory`"),
            honoured("services.*.deploy.resources.limits.pids", "the engine's `HostConfig.PidsLimit`"),
            honoured("services.*.deploy.resources.reservations", "what is kept for it").takes(&["{}"]),
            honoured("services.*.deploy.resources.reservations.cpus", "the node must have as much left")
                .many("only nodes that have as much left get the task"),
            honoured("services.*.deploy.resources.reservations.memory", "the engine's `HostConfig.MemoryReservation`; the node must have as much left")
                .many("only nodes that have as much left get the task"),
            honoured("services.*.deploy.resources.reservations.generic_resources", "the task gets so many devices of the kind and is told which in `DOCKER_RESOURCE_KIND`, as by Swarm; [devices](../howto/devices.md)")
                .many("only nodes that have as many left get the task, and no two tasks the same one")
                .takes(&[r#"[{"discrete_resource_spec": {"kind": "gpu", "value": 2}}]"#])
                .shown_by(&["devices::no_two_tasks_get_the_same_device"]),
            honoured("services.*.deploy.resources.reservations.devices", "the engine's `HostConfig.DeviceRequests`")
                .many("GPUs: only nodes that have as many left get the task, and no two tasks the same one; others: of the node that runs the task, choose it by `placement`")
                .takes(&[r#"[{"capabilities": ["gpu"]}]"#]),
            honoured("services.*.deploy.resources.reservations.devices[].capabilities", GPU),
            honoured("services.*.deploy.resources.reservations.devices[].count", GPU).takes(&["1", r#""all""#]),
            honoured("services.*.deploy.resources.reservations.devices[].device_ids", GPU),
            honoured("services.*.deploy.resources.reservations.devices[].driver", GPU),
            honoured("services.*.deploy.resources.reservations.devices[].options", GPU),
            honoured("services.*.deploy.placement", "which nodes may take its tasks").takes(&["{}"]).shown_by(PLACES),
            honoured("services.*.deploy.placement.constraints", "on `node.id`, `node.hostname`, `node.role`, `node.platform.os`, `node.platform.arch`, `node.labels.…`, `engine.labels.…`, with `==` and `!=`")
                .takes(&[r#"["node.labels.disk == ssd", "node.hostname != n1"]"#])
                .shown_by(PLACES),
            honoured("services.*.deploy.placement.preferences", "spread over the values of a label").takes(&[r#"[{"spread": "node.labels.zone"}]"#])
                .shown_by(&["place/tests::zones_come_before_nodes"]),
            honoured("services.*.deploy.placement.preferences[].spread", "`node.labels.…` or `engine.labels.…`").takes(&[r#""node.labels.zone""#])
                .shown_by(&["place/tests::zones_come_before_nodes"]),
            honoured("services.*.deploy.placement.max_replicas_per_node", "no more tasks on one node; 0 is no limit"),
        ],
    },
    Section {
        title: "Networks",
        attributes: &[
            honoured("networks.*.name", "what the network is called"),
            partly("networks.*.driver", "`bridge` and `overlay` are the same: a network of the cluster; `macvlan` is on the nodes' own segment (`driver_opts: {parent: eth0}`), `host` is `network_mode: host` of its services; [all backends](../howto/networks.md)", &[r#""ipvlan""#])
                .takes(&[r#""bridge""#, r#""overlay""#]),
            partly("networks.*.driver_opts", "the engine's `Options`", &[r#"{"com.docker.network.bridge.name": "x"}"#])
                .takes(&[r#"{"com.docker.network.driver.mtu": "1400"}"#, r#"{"encrypted": ""}"#])
                .many("the engine's `Options`; `encrypted` is the backend `wireguard`"),
            honoured("networks.*.attachable", "the engine's flag; containers made by hand [get no address](../howto/networks.md#containers-made-by-hand)"),
            honoured("networks.*.internal", "no way out").many("no way out of the cluster"),
            honoured("networks.*.external", "the network of another app of the same environment, by its name"),
            honoured("networks.*.external.name", "the old form of `name`"),
            honoured("networks.*.labels", "the network's labels, beside Wharf's own").takes(&[r#"{"a": "b"}"#]),
            partly("networks.*.enable_ipv4", "networks have IPv4", &["false"]).takes(&["true"]),
            honoured("networks.*.enable_ipv6", "each task has an IPv6 address as well")
                .takes(&["true", "false"])
                .many("a /64 of the cluster's own range if `ipam` says none; with the backends `vxlan` and `wireguard`")
                .shown_by(IPV6),
            honoured("networks.*.ipam", "its addresses").takes(&["{}"]),
            partly("networks.*.ipam.driver", "`default`", &[r#""dhcp""#]).takes(&[r#""default""#]),
            refused("networks.*.ipam.options"),
            partly("networks.*.ipam.config", "one pool of IPv4 addresses, and with `enable_ipv6` one of IPv6 addresses", &[r#"[{"subnet": "10.5.0.0/24"}, {"subnet": "10.6.0.0/24"}]"#]).takes(&[r#"[{"subnet": "10.5.0.0/24"}]"#]),
            honoured("networks.*.ipam.config[].subnet", "its subnet; without it the cluster chooses; an IPv6 one needs `enable_ipv6`")
                .many("one for all nodes")
                .takes(&[r#""10.5.0.0/24""#]),
            honoured("networks.*.ipam.config[].ip_range", "addresses that tasks get are of this part").takes(&[r#""10.5.0.128/25""#]).many("of all nodes together"),
            honoured("networks.*.ipam.config[].gateway", "the node's address on it").takes(&[r#""10.5.0.1""#]).many("that of the first node; each further one has its own"),
            honoured("networks.*.ipam.config[].aux_addresses", "addresses that are never given to a task").takes(&[r#"{"host1": "10.5.0.5"}"#])
                .shown_by(AUX),
        ],
    },
    Section {
        title: "Volumes",
        attributes: &[
            honoured("volumes.*.name", "what the volume is called"),
            partly("volumes.*.driver", "`local`", &[r#""nfs""#]).takes(&[r#""local""#]),
            honoured("volumes.*.driver_opts", "the engine's `Options`: mounts of NFS, CIFS, tmpfs and the like")
                .many("what is on another machine (NFS, CIFS) is mounted by each node that runs a task"),
            honoured("volumes.*.external", "the node's volume of that name, whoever made it; `wharf down --volumes` leaves it")
                .many("a node without one says so: choose the node by `deploy.placement`"),
            honoured("volumes.*.external.name", "the old form of `name`"),
            honoured("volumes.*.labels", "the volume's labels, beside Wharf's own").takes(&[r#"{"a": "b"}"#]),
        ],
    },
    Section {
        title: "Secrets and configs",
        attributes: &[
            honoured("secrets.*.name", "another name for it"),
            honoured("secrets.*.file", "the file's content when `wharf` is called, at most 1,000,000 bytes").takes(&[r#""token""#]),
            honoured("secrets.*.environment", "a variable of the caller").takes(&[r#""TOKEN""#]),
            honoured("secrets.*.content", "as it stands in the file"),
            honoured("secrets.*.external", "one that the environment keeps, by its name: its newest version, held by each release").shown_by(KEPT),
            honoured("secrets.*.external.name", "the old form of `name`").shown_by(KEPT),
            honoured("secrets.*.labels", "kept with it; containers know nothing of them").takes(&[r#"{"a": "b"}"#]),
            refused("secrets.*.driver"),
            refused("secrets.*.driver_opts"),
            refused("secrets.*.template_driver"),
            honoured("configs.*.name", "another name for it"),
            honoured("configs.*.file", "the file's content when `wharf` is called, at most 1,000,000 bytes").takes(&[r#""token""#]),
            honoured("configs.*.environment", "a variable of the caller").takes(&[r#""TOKEN""#]),
            honoured("configs.*.content", "as it stands in the file"),
            honoured("configs.*.external", "one that the environment keeps, by its name: its newest version, held by each release").shown_by(KEPT),
            honoured("configs.*.external.name", "the old form of `name`").shown_by(KEPT),
            honoured("configs.*.labels", "kept with it; containers know nothing of them").takes(&[r#"{"a": "b"}"#]),
            refused("configs.*.template_driver"),
        ],
    },
];
