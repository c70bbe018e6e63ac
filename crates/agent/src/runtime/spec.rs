//! Turns a task into what Docker Engine is told when its container is made.
//!
//! - Pure: the same task on the same node gives the same container.
//! - Every field of a specification is taken apart by name here, so that a new one breaks the build until it is honoured.
//! - What the engine in use is too old for is an error with a hint, never left out.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings, HealthConfig,
    HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountImageOptions, MountTmpfsOptions, MountType, MountVolumeOptions,
    NetworkingConfig, PortBinding, ResourcesBlkioWeightDevice, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum, ThrottleDevice,
};
use wharf_model::{
    Blkio, ContainerSpec, Cpus, EndpointSpec, Healthcheck, Millis, MountSource, MountSpec, Namespace,
    NetworkMode, PortSpec, PublishMode, Recursion, ResourceSet, Resources, ServiceName, ServiceSpec, Shared,
    TaskAssignment, TaskDevice, VolumesFrom, WHOLE, mac_for,
};

use super::{Connection, ContainerId, Labels, RESOLV_CONF, Result, RuntimeError, Surroundings};

/// How long a container may take to stop if its service does not say.
pub const DEFAULT_GRACE: Millis = Millis::from_secs(10);

/// A version of the engine's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Before the point.
    pub major: u16,
    /// After it.
    pub minor: u16,
}
impl ApiVersion {
    /// The oldest that is supported: Docker Engine 20.10.
    pub const OLDEST: Self = Self { major: 1, minor: 41 };
    /// Takes several networks in one create, a MAC address for each, and `start_interval`.
    const ENDPOINTS: Self = Self { major: 1, minor: 44 };
    const ANNOTATIONS: Self = Self { major: 1, minor: 43 };
    /// Takes kernel parameters for one interface.
    const ENDPOINT_SYSCTLS: Self = Self { major: 1, minor: 46 };
    /// Takes an order of default routes (older engines go by the networks' names), names for interfaces, and mounts images.
    const ENGINE_28: Self = Self { major: 1, minor: 48 };
    const SUBPATH: Self = Self { major: 1, minor: 45 };
    /// Makes the folders of bind mounts itself.
    const CREATE_MOUNTPOINT: Self = Self { major: 1, minor: 42 };

    /// Reads `1.41`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}
impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What is said at a container's creation, and what must follow before its start.
#[derive(Debug, Clone, PartialEq)]
pub struct Creation {
    /// The body of the create call.
    pub body: ContainerCreateBody,
    /// Networks that an older engine does not take there: connected one by one afterwards, in this order.
    pub connect: Vec<(String, EndpointSettings)>,
}

/// What the engine is told to make a task's container.
///
/// # Errors
/// If the engine's API is too old for something the service asks for, or the node misses something it needs.
pub fn container_config(
    task: &TaskAssignment,
    surroundings: &Surroundings,
    labels: &Labels,
    api: ApiVersion,
) -> Result<Creation> {
    let ServiceSpec {
        image: _,       // pinned in the assignment; the node knows its identifier
        pull_policy: _, // asked about when the image is made ready
        mode: _,
        container,
        depends_on: _,
        network_mode,
        networks: _,      // the assignment's attachments carry them
        endpoint_mode: _, // the names' business
        ports,
        expose: _, // goes into `exposed_ports` below
        restart: _,
        update: _,
        rollback: _,
        placement: _, // the scheduler's
        resources,
        healthcheck,
        probe,
        labels: _,  // the service's, not its containers'
        configs: _, // the assignment's files carry both
        secrets: _,
        policy: _, // the gateways' and the scheduler's
    } = &task.spec;
    let check = match (probe, healthcheck) {
        // Wharf asks; a second check inside the container would only cost.
        (Some(_), _) => Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        (None, Some(check)) => Some(health_config(check, api)?),
        (None, None) => None,
    };
    let Endpoints { create: first, connect } = endpoints(network_mode, &surroundings.networks, api)?;
    let mut body = ContainerCreateBody {
        image: Some(surroundings.image_id.clone()),
        labels: Some(labels.of_task(task)),
        healthcheck: check,
        exposed_ports: exposed(ports, &task.spec.expose),
        networking_config: first,
        host_config: Some(HostConfig {
            network_mode: Some(engine_network_mode(network_mode, surroundings)?),
            port_bindings: port_bindings(ports),
            // The engine never starts anything by itself: after a reboot the agent first asks who owns the work.
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    if let Some(labels) = &mut body.labels {
        labels.insert("com.docker.compose.image".to_owned(), surroundings.image_id.clone());
    }
    fill_container(&mut body, task, container, surroundings, api)?;
    fill_resources(host(&mut body), task, resources, container, api)?;
    if !task.devices.is_empty() {
        body.env.get_or_insert_default().extend(device_variables(&task.devices, container));
    }
    if body.hostname.is_none() && may_have_hostname(network_mode, container) {
        body.hostname = Some(host_name(&task.name));
    }
    Ok(Creation { body, connect })
}

/// Bounds a container's output where nobody has: its service says nothing of it, and neither do the engine's own settings. Unbounded output is
/// what fills disks.
pub fn bound_output(body: &mut ContainerCreateBody, engine_driver: &str, engine_bounds: bool) {
    /// The engine's driver that keeps everything for ever. Its `local` one has these bounds by itself; others do not keep output here.
    const UNBOUNDED: &str = "json-file";
    let host = host(body);
    let driver = host.log_config.as_ref().and_then(|log| log.typ.as_deref()).unwrap_or(engine_driver);
    let says =
        host.log_config.as_ref().and_then(|log| log.config.as_ref()).is_some_and(|config| !config.is_empty());
    if driver != UNBOUNDED || says || engine_bounds {
        return;
    }
    let bounds = [("max-size", "20m"), ("max-file", "5")];
    host.log_config = Some(HostConfigLogConfig {
        typ: Some(UNBOUNDED.to_owned()),
        config: Some(bounds.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
    });
}

fn host(body: &mut ContainerCreateBody) -> &mut HostConfig {
    body.host_config.get_or_insert_with(HostConfig::default)
}

fn fill_container(
    body: &mut ContainerCreateBody,
    task: &TaskAssignment,
    spec: &ContainerSpec,
    surroundings: &Surroundings,
    api: ApiVersion,
) -> Result<()> {
    let ContainerSpec {
        command,
        entrypoint,
        environment,
        working_dir,
        user,
        hostname,
        domainname,
        labels: _, // merged with ours in `Labels::of_task`
        annotations,
        tty,
        stdin_open,
        init,
        read_only,
        privileged,
        cap_add,
        cap_drop,
        security_opt,
        group_add,
        devices,
        device_cgroup_rules,
        dns,
        dns_search,
        dns_opt,
        extra_hosts,
        ipc,
        pid,
        uts,
        userns_mode,
        cgroup,
        cgroup_parent,
        shm_size,
        sysctls,
        ulimits,
        tmpfs,
        mounts,
        volumes_from,
        logging,
        oom_kill_disable,
        oom_score_adj,
        mem_swappiness,
        memswap_limit,
        cpu_shares,
        cpu_period,
        cpu_quota,
        cpu_rt_period,
        cpu_rt_runtime,
        cpuset,
        blkio,
        runtime,
        storage_opt,
        stop_signal,
        stop_grace_period,
        post_start: _, // the task's loop runs both
        pre_stop: _,
    } = spec;
    if !annotations.is_empty() && api < ApiVersion::ANNOTATIONS {
        return Err(too_old("annotations", "24", api));
    }
    let (bind_mounts, binds) = split_mounts(mounts, *read_only, surroundings, api)?;

    body.cmd.clone_from(command);
    // Docker clears the image's entry point for a list with one empty string; an empty list would leave it.
    body.entrypoint = entrypoint.clone().map(|list| if list.is_empty() { vec![String::new()] } else { list });
    body.env = filled(environment.iter().map(|(key, value)| match value {
        Some(value) => format!("{key}={value}"),
        // Without `=`, Docker takes the variable out of the image's own.
        None => key.clone(),
    }));
    body.working_dir.clone_from(working_dir);
    body.user.clone_from(user);
    body.hostname.clone_from(hostname);
    body.domainname.clone_from(domainname);
    body.tty = Some(*tty);
    body.open_stdin = Some(*stdin_open);
    body.stop_signal.clone_from(stop_signal);
    body.stop_timeout = Some(whole_seconds(stop_grace_period.unwrap_or(DEFAULT_GRACE)));

    let host = host(body);
    host.annotations = map(annotations);
    host.init = *init;
    host.readonly_rootfs = Some(*read_only);
    host.privileged = Some(*privileged);
    host.cap_add = filled(cap_add.iter().cloned());
    host.cap_drop = filled(cap_drop.iter().cloned());
    host.security_opt = filled(security_opt.iter().cloned());
    host.group_add = filled(group_add.iter().cloned());
    // A name of the Container Device Interface is no path, and is requested of a driver.
    host.devices =
        filled(devices.iter().filter(|device| !is_interface(device)).map(|device| DeviceMapping {
            path_on_host: Some(device.source.clone()),
            path_in_container: Some(device.target.clone()),
            cgroup_permissions: Some(device.permissions.clone()),
        }));
    host.device_cgroup_rules = filled(device_cgroup_rules.iter().cloned());
    host.dns = name_servers(dns, task, surroundings);
    host.dns_search = filled(dns_search.iter().cloned());
    host.dns_options = filled(dns_opt.iter().cloned());
    host.extra_hosts = filled(extra_hosts.iter().cloned());
    host.ipc_mode = ipc.as_ref().map(|ipc| namespace(ipc, Shared::Ipc, surroundings)).transpose()?;
    host.pid_mode = pid.as_ref().map(|pid| namespace(pid, Shared::Pid, surroundings)).transpose()?;
    host.uts_mode.clone_from(uts);
    host.userns_mode.clone_from(userns_mode);
    host.cgroupns_mode = match cgroup.as_deref() {
        None => None,
        Some("host") => Some(HostConfigCgroupnsModeEnum::HOST),
        Some("private") => Some(HostConfigCgroupnsModeEnum::PRIVATE),
        Some(other) => {
            return Err(RuntimeError::fatal(format!("`cgroup: {other}` is neither `host` nor `private`")));
        }
    };
    host.cgroup_parent.clone_from(cgroup_parent);
    host.shm_size = shm_size.map(|size| signed(size.0));
    host.sysctls = map(sysctls);
    host.ulimits = filled(ulimits.iter().map(|(name, limit)| ResourcesUlimits {
        name: Some(name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    }));
    host.tmpfs = map(tmpfs);
    host.mounts = filled(bind_mounts);
    let from = volumes_from.iter().map(|VolumesFrom { service, read_only }| {
        let container = companion(service, Shared::Volumes, surroundings)?;
        Ok(format!("{container}:{}", if *read_only { "ro" } else { "rw" }))
    });
    host.volumes_from = filled(from.collect::<Result<Vec<_>>>()?);
    host.binds = filled(binds);
    host.log_config = logging
        .as_ref()
        .map(|logging| HostConfigLogConfig { typ: logging.driver.clone(), config: map(&logging.options) });
    host.oom_kill_disable = oom_kill_disable.then_some(true);
    host.oom_score_adj = *oom_score_adj;
    host.memory_swappiness = *mem_swappiness;
    host.memory_swap = *memswap_limit;
    host.cpu_shares = *cpu_shares;
    host.cpu_period = *cpu_period;
    host.cpu_quota = *cpu_quota;
    host.cpu_realtime_period = *cpu_rt_period;
    host.cpu_realtime_runtime = *cpu_rt_runtime;
    host.cpuset_cpus.clone_from(cpuset);
    host.runtime.clone_from(runtime);
    host.storage_opt = map(storage_opt);
    if let Some(blkio) = blkio {
        fill_blkio(host, blkio);
    }
    Ok(())
}

fn fill_blkio(host: &mut HostConfig, blkio: &Blkio) {
    let Blkio {
        weight,
        weight_device,
        device_read_bps,
        device_write_bps,
        device_read_iops,
        device_write_iops,
    } = blkio;
    let throttle = |rates: &BTreeMap<String, u64>| {
        filled(
            rates
                .iter()
                .map(|(path, rate)| ThrottleDevice { path: Some(path.clone()), rate: Some(signed(*rate)) }),
        )
    };
    host.blkio_weight = *weight;
    host.blkio_weight_device = filled(weight_device.iter().map(|(path, weight)| {
        ResourcesBlkioWeightDevice { path: Some(path.clone()), weight: Some(usize::from(*weight)) }
    }));
    host.blkio_device_read_bps = throttle(device_read_bps);
    host.blkio_device_write_bps = throttle(device_write_bps);
    host.blkio_device_read_iops = throttle(device_read_iops);
    host.blkio_device_write_iops = throttle(device_write_iops);
}

/// Whether it is named as the Container Device Interface does: `vendor.com/class=name`.
fn is_interface(device: &wharf_model::DeviceMapping) -> bool {
    !device.source.starts_with('/')
}

fn fill_resources(
    host: &mut HostConfig,
    task: &TaskAssignment,
    resources: &Resources,
    container: &ContainerSpec,
    api: ApiVersion,
) -> Result<()> {
    // What is asked for of GPUs and by kinds was answered when the task got its node.
    let Resources { limits, reservations, devices, generic: _, gpu } = resources;
    let ResourceSet { cpus, memory, pids } = limits;
    // Reserved processors are the scheduler's arithmetic; reserved memory is also the kernel's soft limit, and a
    // reservation of processes has no meaning to an engine.
    let ResourceSet { cpus: _, memory: reserved_memory, pids: _ } = reservations;
    if cpus.is_some() && (container.cpu_quota.is_some() || container.cpu_period.is_some()) {
        return Err(RuntimeError::fatal(
            "a limit of `cpus` and `cpu_quota` or `cpu_period` exclude each other",
        )
        .with_hint("use one of the two in the Compose file"));
    }
    host.nano_cpus = cpus.map(|cpus: Cpus| signed(cpus.nano()));
    host.memory = memory.map(|bytes| signed(bytes.0));
    host.memory_reservation = reserved_memory.map(|bytes| signed(bytes.0));
    host.pids_limit = *pids;
    let named: Vec<_> = container.devices.iter().filter(|device| is_interface(device)).collect();
    if let Some(device) = named.first()
        && api < ApiVersion::ENDPOINTS
    {
        return Err(too_old(&format!("devices: {}", device.source), "25", api));
    }
    let mut gpus: Vec<_> = task.devices.iter().filter(|device| device.kind.is_gpu()).collect();
    let mut requests: Vec<_> = devices.iter().map(|request| device_request(request, &mut gpus)).collect();
    // A wish in `x-wharf` says nothing of the engine's drivers: the device does, or it is in the environment only.
    if gpu.is_some() {
        requests.extend(gpus.into_iter().filter(|device| device.driver.is_some()).map(|device| {
            DeviceRequest {
                driver: device.driver.clone(),
                device_ids: filled(device.id.iter().cloned()),
                capabilities: Some(vec![vec!["gpu".to_owned()]]),
                ..DeviceRequest::default()
            }
        }));
    }
    let named = (!named.is_empty()).then(|| DeviceRequest {
        driver: Some("cdi".to_owned()),
        device_ids: filled(named.into_iter().map(|device| device.source.clone())),
        ..DeviceRequest::default()
    });
    host.device_requests = filled(requests.into_iter().chain(named));
    Ok(())
}

/// A request as the service makes it; where it is for GPUs, for those that the task was given, which are taken off `gpus`.
fn device_request(request: &wharf_model::DeviceRequest, gpus: &mut Vec<&TaskDevice>) -> DeviceRequest {
    let mut out = DeviceRequest {
        driver: request.driver.clone(),
        count: request.count,
        device_ids: filled(request.device_ids.iter().cloned()),
        capabilities: (!request.capabilities.is_empty()).then(|| vec![request.capabilities.clone()]),
        options: map(&request.options),
    };
    let is_for_gpus =
        request.driver.as_deref() == Some("nvidia") || request.capabilities.iter().any(|one| one == "gpu");
    if !is_for_gpus {
        return out;
    }
    let wanted = match request.count {
        Some(count) => usize::try_from(count).unwrap_or(gpus.len()),
        None if request.device_ids.is_empty() => gpus.len(),
        None => request.device_ids.len(),
    };
    let whole = gpus.iter().filter(|device| !device.is_shared()).count();
    let ids: Vec<_> = (0..wanted.min(whole))
        .filter_map(|_| gpus.iter().position(|device| !device.is_shared()).map(|index| gpus.remove(index)))
        .filter_map(|device| device.id.clone())
        .collect();
    // A task of a server that gave out no devices yet asks as it always did.
    if !ids.is_empty() {
        (out.count, out.device_ids) = (None, Some(ids));
    }
    out
}

/// The variables in which a container is told of its devices: Swarm's, those that NVIDIA's runtime reads, and of a shared GPU the part that
/// its Multi-Process Service keeps a client to. What the service sets itself stays.
fn device_variables(devices: &[TaskDevice], container: &ContainerSpec) -> Vec<String> {
    let mut variables = BTreeMap::<String, Vec<String>>::new();
    for device in devices {
        let value = match &device.id {
            Some(id) => id.clone(),
            None => (device.share / u64::from(WHOLE)).to_string(),
        };
        if device.kind.is_gpu() {
            variables.entry("NVIDIA_VISIBLE_DEVICES".to_owned()).or_default().push(value.clone());
        }
        variables.entry(device.kind.variable()).or_default().push(value);
        if device.is_shared() {
            let percent = (device.share / 10).max(1).to_string();
            variables.insert("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".to_owned(), vec![percent]);
        }
    }
    let new = variables.into_iter().filter(|(name, _)| !container.environment.contains_key(name));
    new.map(|(name, values)| format!("{name}={}", values.join(","))).collect()
}

fn health_config(check: &Healthcheck, api: ApiVersion) -> Result<HealthConfig> {
    let Healthcheck { test, interval, timeout, retries, start_period, start_interval } = check;
    if start_interval.is_some() && api < ApiVersion::ENDPOINTS {
        return Err(too_old("healthcheck.start_interval", "25", api));
    }
    let nanos = |time: &Option<Millis>| time.map(|time| signed(time.0.saturating_mul(1_000_000)));
    Ok(HealthConfig {
        test: test.clone(),
        interval: nanos(interval),
        timeout: nanos(timeout),
        retries: retries.map(i64::from),
        start_period: nanos(start_period),
        start_interval: nanos(start_interval),
    })
}

/// What goes into `mounts` and what only the older form `source:target:options` can say: relabelling for SELinux, and
/// making a missing folder before API 1.42.
fn split_mounts(
    specs: &[MountSpec],
    read_only_root: bool,
    surroundings: &Surroundings,
    api: ApiVersion,
) -> Result<(Vec<Mount>, Vec<String>)> {
    let (mut mounts, mut binds) = (Vec::new(), Vec::new());
    for MountSpec { source, target, read_only } in specs {
        let mount = Mount { target: Some(target.clone()), read_only: Some(*read_only), ..Mount::default() };
        match source {
            MountSource::Volume { volume, nocopy, subpath } => {
                if subpath.is_some() && api < ApiVersion::SUBPATH {
                    return Err(too_old("volume.subpath", "26", api));
                }
                let name = surroundings.volumes.get(volume).ok_or_else(|| {
                    RuntimeError::fatal(format!("the volume `{volume}` was not assigned to this node"))
                })?;
                mounts.push(Mount {
                    typ: Some(MountType::VOLUME),
                    source: Some(name.clone()),
                    volume_options: Some(MountVolumeOptions {
                        no_copy: nocopy.then_some(true),
                        subpath: subpath.clone(),
                        ..MountVolumeOptions::default()
                    }),
                    ..mount
                });
            }
            MountSource::Anonymous { nocopy, labels } => mounts.push(Mount {
                typ: Some(MountType::VOLUME),
                volume_options: (*nocopy || !labels.is_empty()).then(|| MountVolumeOptions {
                    no_copy: nocopy.then_some(true),
                    labels: map(labels),
                    ..MountVolumeOptions::default()
                }),
                ..mount
            }),
            MountSource::Image { image, subpath } => {
                if api < ApiVersion::ENGINE_28 {
                    return Err(too_old("type: image", "28", api));
                }
                mounts.push(Mount {
                    typ: Some(MountType::IMAGE),
                    source: Some(image.clone()),
                    image_options: subpath
                        .as_ref()
                        .map(|subpath| MountImageOptions { subpath: Some(subpath.clone()) }),
                    ..mount
                });
            }
            MountSource::Bind { path, create, propagation, selinux, recursive } => {
                let makes_folder = *create && api < ApiVersion::CREATE_MOUNTPOINT;
                let (shallow, writable, strict) = match recursive {
                    Recursion::Enabled => (false, false, false),
                    Recursion::Disabled => (true, false, false),
                    Recursion::Writable => (false, true, false),
                    Recursion::Readonly => (false, false, true),
                };
                if (writable || strict) && api < ApiVersion::ENDPOINTS {
                    return Err(too_old("bind.recursive", "25", api));
                }
                // What only the older form can say, it cannot say of a mount that has this.
                if *recursive == Recursion::Enabled && (makes_folder || selinux.is_some()) {
                    let options = [
                        Some(if *read_only { "ro" } else { "rw" }),
                        propagation.as_deref(),
                        selinux.as_deref(),
                    ];
                    let options = options.into_iter().flatten().collect::<Vec<_>>().join(",");
                    binds.push(format!("{path}:{target}:{options}"));
                } else {
                    mounts.push(Mount {
                        typ: Some(MountType::BIND),
                        source: Some(path.clone()),
                        bind_options: Some(MountBindOptions {
                            // The engine takes the strict kind with this propagation only.
                            propagation: propagation
                                .as_deref()
                                .or(strict.then_some("rprivate"))
                                .map(bind_propagation)
                                .transpose()?,
                            create_mountpoint: create.then_some(true),
                            non_recursive: shallow.then_some(true),
                            read_only_non_recursive: writable.then_some(true),
                            read_only_force_recursive: strict.then_some(true),
                        }),
                        ..mount
                    });
                }
            }
            MountSource::Tmpfs { size, mode } => mounts.push(Mount {
                typ: Some(MountType::TMPFS),
                tmpfs_options: Some(MountTmpfsOptions {
                    size_bytes: size.map(|size| signed(size.0)),
                    mode: mode.map(i64::from),
                    options: None,
                }),
                ..mount
            }),
        }
    }
    mounts.extend(surroundings.files.iter().map(|file| Mount {
        typ: Some(MountType::BIND),
        source: Some(file.source.clone()),
        target: Some(file.target.clone()),
        read_only: Some(true),
        ..Mount::default()
    }));
    mounts.extend(surroundings.resolv_conf.iter().map(|file| Mount {
        typ: Some(MountType::BIND),
        source: Some(file.clone()),
        target: Some(RESOLV_CONF.to_owned()),
        // As the engine mounts its own.
        read_only: Some(read_only_root),
        ..Mount::default()
    }));
    Ok((mounts, binds))
}

fn bind_propagation(text: &str) -> Result<MountBindOptionsPropagationEnum> {
    Ok(match text {
        "private" => MountBindOptionsPropagationEnum::PRIVATE,
        "rprivate" => MountBindOptionsPropagationEnum::RPRIVATE,
        "shared" => MountBindOptionsPropagationEnum::SHARED,
        "rshared" => MountBindOptionsPropagationEnum::RSHARED,
        "slave" => MountBindOptionsPropagationEnum::SLAVE,
        "rslave" => MountBindOptionsPropagationEnum::RSLAVE,
        other => return Err(RuntimeError::fatal(format!("`{other}` is not a bind propagation"))),
    })
}

/// The container of another service with which something is shared.
fn companion<'s>(
    service: &ServiceName,
    what: Shared,
    surroundings: &'s Surroundings,
) -> Result<&'s ContainerId> {
    surroundings.companions.get(service).ok_or_else(|| {
        RuntimeError::temporary(format!(
            "no task of `{service}` runs on this node whose {what} could be shared"
        ))
    })
}

fn namespace(namespace: &Namespace, what: Shared, surroundings: &Surroundings) -> Result<String> {
    match namespace {
        Namespace::Mode(mode) => Ok(mode.clone()),
        Namespace::Service(service) => Ok(format!("container:{}", companion(service, what, surroundings)?)),
    }
}

fn engine_network_mode(mode: &NetworkMode, surroundings: &Surroundings) -> Result<String> {
    match mode {
        NetworkMode::Host => Ok("host".to_owned()),
        NetworkMode::None => Ok("none".to_owned()),
        NetworkMode::Service(service) => {
            Ok(format!("container:{}", companion(service, Shared::Network, surroundings)?))
        }
        NetworkMode::Bridge => Ok("bridge".to_owned()),
        NetworkMode::Networks => Ok(match surroundings.networks.first() {
            Some(connection) => connection.network.clone(),
            None => "none".to_owned(),
        }),
    }
}

/// Connections of a container.
#[derive(Default)]
struct Endpoints {
    /// Said at its creation.
    create: Option<NetworkingConfig>,
    /// Made afterwards, one by one.
    connect: Vec<(String, EndpointSettings)>,
}

/// The endpoints for the create call, and those that must be connected afterwards.
fn endpoints(mode: &NetworkMode, connections: &[Connection], api: ApiVersion) -> Result<Endpoints> {
    if *mode != NetworkMode::Networks || connections.is_empty() {
        return Ok(Endpoints::default());
    }
    let last = i64::try_from(connections.len()).unwrap_or(i64::MAX);
    // A file that says which network is the default route says it of all; otherwise it is the first.
    let said = connections.iter().any(|connection| connection.endpoint.gw_priority != 0);
    if said && api < ApiVersion::ENGINE_28 {
        return Err(too_old("gw_priority", "28", api));
    }
    let all = connections.iter().zip((1..=last).rev()).map(|(connection, place)| {
        let priority = if said { connection.endpoint.gw_priority } else { place };
        Ok((connection.network.clone(), endpoint(connection, priority, api)?))
    });
    let mut all = all.collect::<Result<Vec<_>>>()?.into_iter();
    let (create, connect) = if api >= ApiVersion::ENDPOINTS {
        (all.collect(), Vec::new())
    } else {
        (all.by_ref().take(1).collect::<HashMap<_, _>>(), all.collect())
    };
    let create = Some(NetworkingConfig { endpoints_config: Some(create) });
    Ok(Endpoints { create, connect })
}

/// No aliases: the engine would answer them with this node's tasks alone. Before API 1.44 an endpoint takes no MAC address; those engines derive it from the address by the same rule as
/// [`mac_for`].
fn endpoint(connection: &Connection, priority: i64, api: ApiVersion) -> Result<EndpointSettings> {
    const NAME: &str = "com.docker.network.endpoint.ifname";
    const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";
    let EndpointSpec { mac_address, interface_name, driver_opts, gw_priority: _, link_local_ips } =
        &connection.endpoint;
    if mac_address.is_some() && api < ApiVersion::ENDPOINTS {
        return Err(too_old("mac_address", "25", api));
    }
    let mut options: HashMap<_, _> = driver_opts.clone().into_iter().collect();
    if let Some(name) = interface_name {
        options.insert(NAME.to_owned(), name.clone());
    }
    // An engine that does not know an option drops it.
    if options.contains_key(NAME) && api < ApiVersion::ENGINE_28 {
        return Err(too_old("interface_name", "28", api));
    }
    if options.contains_key(SYSCTLS) && api < ApiVersion::ENDPOINT_SYSCTLS {
        return Err(too_old(SYSCTLS, "27", api));
    }
    let mac = mac_address.map_or_else(|| mac_for(connection.address), |mac| mac.0);
    Ok(EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(connection.address.to_string()),
            ipv6_address: connection.address6.map(|address| address.to_string()),
            link_local_ips: filled(link_local_ips.iter().map(ToString::to_string)),
        }),
        mac_address: (api >= ApiVersion::ENDPOINTS).then(|| mac_text(mac)),
        driver_opts: (!options.is_empty()).then_some(options),
        gw_priority: (api >= ApiVersion::ENGINE_28).then_some(priority),
        ..EndpointSettings::default()
    })
}

/// `02:42:…`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The node answers DNS on each of its bridges; one that shares another's network has that one's resolver. Those of the container's own come
/// behind it, for what the node does not know.
fn name_servers(
    own: &[std::net::IpAddr],
    task: &TaskAssignment,
    surroundings: &Surroundings,
) -> Option<Vec<String>> {
    let shares = !matches!(task.spec.network_mode, NetworkMode::Networks);
    let node = surroundings.networks.first().filter(|_| !shares).map(|first| first.gateway.to_string());
    filled(node.into_iter().chain(own.iter().map(ToString::to_string)))
}

/// The engine refuses a host name for a container in somebody else's network or UTS namespace.
fn may_have_hostname(mode: &NetworkMode, container: &ContainerSpec) -> bool {
    let own_network = match mode {
        NetworkMode::Networks | NetworkMode::None | NetworkMode::Bridge => true,
        NetworkMode::Host | NetworkMode::Service(_) => false,
    };
    own_network && container.uts.is_none()
}

/// The kernel takes 64 characters, and a label of a name 63.
fn host_name(task: &str) -> String {
    let name: String = task.chars().map(|c| if c == '_' { '-' } else { c }).take(63).collect();
    name.trim_end_matches(['-', '.']).to_owned()
}

fn exposed(ports: &[PortSpec], expose: &[String]) -> Option<Vec<String>> {
    let published = ports.iter().map(|port| format!("{}/{}", port.target, port.protocol.as_str()));
    let said =
        expose.iter().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
    let all: std::collections::BTreeSet<_> = published.chain(said).collect();
    filled(all)
}

fn port_bindings(ports: &[PortSpec]) -> Option<HashMap<String, Option<Vec<PortBinding>>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in ports.iter().filter(|port| port.mode == PublishMode::Host) {
        let binding = PortBinding {
            host_ip: port.host_ip.map(|address| address.to_string()),
            host_port: port.published.map(|port| port.to_string()),
        };
        let key = format!("{}/{}", port.target, port.protocol.as_str());
        bindings.entry(key).or_default().get_or_insert_with(Vec::new).push(binding);
    }
    (!bindings.is_empty()).then_some(bindings)
}

fn too_old(what: &str, engine: &str, api: ApiVersion) -> RuntimeError {
    RuntimeError::fatal(format!("`{what}` needs Docker Engine {engine} or later; this one speaks API {api}"))
        .with_hint(format!("update Docker Engine on this node, or leave `{what}` out"))
}

fn filled<T>(items: impl IntoIterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.into_iter().collect();
    (!items.is_empty()).then_some(items)
}

fn map(entries: &BTreeMap<String, String>) -> Option<HashMap<String, String>> {
    (!entries.is_empty()).then(|| entries.clone().into_iter().collect())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn whole_seconds(time: Millis) -> i64 {
    signed(time.0.div_ceil(1000))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wharf_model::{Bytes, Probe, ProbeKind, Protocol, Slot};

    use super::*;
    use crate::runtime::{FileBind, contract::sample_task};

    const OLD: ApiVersion = ApiVersion::OLDEST;
    const NEW: ApiVersion = ApiVersion { major: 1, minor: 52 };

    fn made(task: &TaskAssignment, surroundings: &Surroundings, api: ApiVersion) -> Creation {
        container_config(task, surroundings, &Labels::new("c1"), api).unwrap()
    }
    fn on(name: &str, last: u8) -> Connection {
        Connection {
            network: name.to_owned(),
            address: Ipv4Addr::new(10, 0, 0, last),
            address6: None,
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            endpoint: EndpointSpec::default(),
        }
    }
    fn plain() -> Surroundings {
        Surroundings {
            image_id: "sha256:ab".to_owned(),
            networks: vec![on("front", 5), on("back", 6)],
            ..Surroundings::default()
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(ApiVersion::parse("1.9").unwrap() < ApiVersion::parse("1.41").unwrap());
        assert_eq!(ApiVersion::parse("one"), None);
    }

    #[test]
    fn a_plain_task_never_restarts_by_itself_and_asks_its_nodes_dns() {
        let mut task = sample_task(1, "web", "img");
        task.slot = Slot(2);
        let healthy = wharf_model::Dependency {
            condition: wharf_model::DependencyCondition::ServiceHealthy,
            restart: true,
            required: true,
        };
        task.spec.depends_on = BTreeMap::from([("db".parse().unwrap(), healthy)]);
        let body = made(&task, &plain(), OLD).body;
        let host = body.host_config.unwrap();
        assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::NO));
        assert_eq!(
            (host.dns, host.network_mode.as_deref()),
            (Some(vec!["10.0.0.1".to_owned()]), Some("front"))
        );
        assert_eq!(
            (body.image.as_deref(), body.hostname.as_deref()),
            (Some("sha256:ab"), Some("shop-web-1"))
        );
        assert_eq!(body.stop_timeout, Some(10));
        let labels = body.labels.unwrap();
        for (key, value) in [
            ("wharf.cluster", "c1"),
            ("wharf.environment", "test"),
            ("wharf.slot", "2"),
            ("com.docker.compose.project", "shop"),
            ("com.docker.compose.service", "web"),
            ("com.docker.compose.container-number", "2"),
            ("com.docker.compose.oneoff", "False"),
            ("com.docker.compose.image", "sha256:ab"),
            ("com.docker.compose.depends_on", "db:service_healthy:true"),
            ("wharf.generation", "1"),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn containers_of_equal_services_have_equal_hashes() {
        let hash = |task: &TaskAssignment| {
            made(task, &plain(), OLD).body.labels.unwrap()["com.docker.compose.config-hash"].clone()
        };
        let (one, mut other) = (sample_task(1, "web", "img"), sample_task(2, "web", "img"));
        assert_eq!((hash(&one).len(), hash(&one)), (64, hash(&other)));
        other.spec.container.tty = true;
        assert_ne!(hash(&one), hash(&other));
    }

    #[test]
    fn labels_of_a_file_cannot_claim_to_be_ours() {
        let mut task = sample_task(1, "web", "img");
        task.spec.container.labels =
            BTreeMap::from([("wharf.task".into(), "x".into()), ("a".into(), "b".into())]);
        let labels = made(&task, &plain(), OLD).body.labels.unwrap();
        assert_eq!((&labels["wharf.task"], &labels["a"]), (&task.id.to_string(), &"b".to_owned()));
    }

    #[test]
    fn networks_are_connected_as_the_engine_takes_them() {
        let task = sample_task(1, "web", "img");
        let old = made(&task, &plain(), OLD);
        let first = old.body.networking_config.unwrap().endpoints_config.unwrap();
        assert_eq!(first.keys().collect::<Vec<_>>(), ["front"]);
        assert_eq!(old.connect.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["back"]);
        assert!(first["front"].mac_address.is_none(), "API 1.41 has no such field for an endpoint");

        let new = made(&task, &plain(), NEW);
        let all = new.body.networking_config.unwrap().endpoints_config.unwrap();
        assert!(new.connect.is_empty() && all.len() == 2);
        assert_eq!(all["back"].mac_address.as_deref(), Some("02:42:0a:00:00:06"));
        assert_eq!(all["back"].ipam_config.as_ref().unwrap().ipv4_address.as_deref(), Some("10.0.0.6"));
        assert!(all["front"].gw_priority > all["back"].gw_priority, "the first is the default route");
    }

    #[test]
    fn other_network_modes_connect_nothing() {
        let mut task = sample_task(1, "web", "img");
        task.spec.network_mode = NetworkMode::Host;
        let creation = made(&task, &plain(), NEW);
        let host = creation.body.host_config.unwrap();
        assert_eq!((host.network_mode.as_deref(), host.dns), (Some("host"), None));
        assert!(creation.body.networking_config.is_none() && creation.body.hostname.is_none());
        task.spec.network_mode = NetworkMode::Service("db".parse().unwrap());
        let error = container_config(&task, &plain(), &Labels::new("c1"), NEW).unwrap_err();
        assert!(error.is_temporary(), "the other task may come: {error}");
        let owner = BTreeMap::from([("db".parse().unwrap(), ContainerId("abc".into()))]);
        let sharing = Surroundings { companions: owner, ..plain() };
        assert_eq!(
            made(&task, &sharing, NEW).body.host_config.unwrap().network_mode.as_deref(),
            Some("container:abc")
        );
    }

    #[test]
    fn the_command_and_the_environment_may_clear_the_images_own() {
        let mut task = sample_task(1, "web", "img");
        task.spec.container.entrypoint = Some(Vec::new());
        task.spec.container.environment =
            BTreeMap::from([("A".into(), Some("1".into())), ("B".into(), None)]);
        let body = made(&task, &plain(), OLD).body;
        assert_eq!(body.entrypoint, Some(vec![String::new()]));
        assert_eq!(body.env, Some(vec!["A=1".to_owned(), "B".to_owned()]));
        assert_eq!(body.cmd, None);
    }

    #[test]
    fn wharfs_own_check_turns_the_engines_off() {
        let mut task = sample_task(1, "web", "img");
        let check = Healthcheck { interval: Some(Millis(1_500)), retries: Some(4), ..Healthcheck::default() };
        task.spec.healthcheck = Some(check);
        let made_check = made(&task, &plain(), OLD).body.healthcheck.unwrap();
        assert_eq!(
            (made_check.interval, made_check.retries, made_check.test),
            (Some(1_500_000_000), Some(4), None)
        );
        let kind = ProbeKind::Tcp { port: 80 };
        let (interval, timeout, start_period) = (Millis(1), Millis(1), Millis(0));
        task.spec.probe = Some(Probe { kind, interval, timeout, retries: 1, start_period });
        assert_eq!(made(&task, &plain(), OLD).body.healthcheck.unwrap().test, Some(vec!["NONE".to_owned()]));
    }

    #[test]
    fn only_host_ports_are_the_engines() {
        let mut task = sample_task(1, "web", "img");
        let port = |target, mode| PortSpec {
            target,
            published: Some(8080),
            published_to: None,
            protocol: Protocol::Udp,
            mode,
            host_ip: None,
            name: None,
            app_protocol: None,
        };
        task.spec.ports = vec![port(80, PublishMode::Ingress), port(53, PublishMode::Host)];
        task.spec.expose = vec!["9000".to_owned()];
        let body = made(&task, &plain(), OLD).body;
        let bindings = body.host_config.unwrap().port_bindings.unwrap();
        assert_eq!(bindings.keys().collect::<Vec<_>>(), ["53/udp"]);
        assert_eq!(body.exposed_ports.unwrap(), ["53/udp", "80/udp", "9000/tcp"]);
    }

    #[test]
    fn limits_and_reservations_reach_the_kernel() {
        let mut task = sample_task(1, "web", "img");
        task.spec.resources.limits =
            ResourceSet { cpus: Some(Cpus(1500)), memory: Some(Bytes(1 << 20)), pids: Some(50) };
        task.spec.resources.reservations.memory = Some(Bytes(1 << 19));
        let host = made(&task, &plain(), OLD).body.host_config.unwrap();
        assert_eq!(
            (host.nano_cpus, host.memory, host.pids_limit),
            (Some(1_500_000_000), Some(1 << 20), Some(50))
        );
        assert_eq!(host.memory_reservation, Some(1 << 19));
        task.spec.container.cpu_quota = Some(1000);
        assert!(
            container_config(&task, &plain(), &Labels::new("c1"), OLD).is_err(),
            "the engine would refuse both"
        );
    }

    #[test]
    fn every_kind_of_mount_is_made() {
        let mut task = sample_task(1, "web", "img");
        let data: wharf_model::VolumeName = "data".parse().unwrap();
        let bind = |create, selinux: Option<&str>| MountSource::Bind {
            path: "/srv".into(),
            create,
            propagation: None,
            selinux: selinux.map(str::to_owned),
            recursive: Recursion::Enabled,
        };
        let sources = [
            MountSource::Volume { volume: data.clone(), nocopy: true, subpath: None },
            MountSource::Anonymous { nocopy: false, labels: BTreeMap::new() },
            MountSource::Tmpfs { size: Some(Bytes(4096)), mode: Some(0o700) },
            bind(true, None),
            bind(false, None),
            bind(false, Some("z")),
        ];
        let mount = |source| MountSpec { source, target: "/t".into(), read_only: true };
        task.spec.container.mounts = sources.map(mount).to_vec();
        let mut surroundings = plain();
        let error = container_config(&task, &surroundings, &Labels::new("c1"), OLD).unwrap_err().to_string();
        assert_eq!(error, "the volume `data` was not assigned to this node");
        surroundings.volumes = BTreeMap::from([(data.clone(), "shop_data".to_owned())]);
        surroundings.files = vec![FileBind { source: "/run/s".into(), target: "/run/secrets/s".into() }];
        surroundings.resolv_conf = Some("/run/names".into());

        let host = made(&task, &surroundings, OLD).body.host_config.unwrap();
        assert_eq!(host.binds.unwrap(), ["/srv:/t:ro", "/srv:/t:ro,z"], "what only the older form can say");
        let kinds: Vec<_> =
            host.mounts.unwrap().into_iter().map(|mount| (mount.typ.unwrap(), mount.source)).collect();
        assert_eq!(
            kinds,
            [
                (MountType::VOLUME, Some("shop_data".to_owned())),
                (MountType::VOLUME, None),
                (MountType::TMPFS, None),
                (MountType::BIND, Some("/srv".to_owned())),
                (MountType::BIND, Some("/run/s".to_owned())),
                (MountType::BIND, Some("/run/names".to_owned())),
            ]
        );
        assert_eq!(
            made(&task, &surroundings, NEW).body.host_config.unwrap().binds.unwrap(),
            ["/srv:/t:ro,z"]
        );
    }

    #[test]
    fn what_the_engine_is_too_old_for_is_refused_with_a_hint() {
        let mut annotated = sample_task(1, "web", "img");
        annotated.spec.container.annotations = BTreeMap::from([("a".into(), "b".into())]);
        let mut eager = sample_task(1, "web", "img");
        eager.spec.healthcheck =
            Some(Healthcheck { start_interval: Some(Millis(1)), ..Healthcheck::default() });
        for task in [annotated, eager] {
            let error = container_config(&task, &plain(), &Labels::new("c1"), OLD).unwrap_err();
            assert!(
                !error.is_temporary() && error.hint().is_some() && error.to_string().contains("1.41"),
                "{error}"
            );
            made(&task, &plain(), NEW);
        }
    }

    #[test]
    fn what_is_shared_is_that_of_the_container_beside_it() {
        let mut task = sample_task(1, "web", "img");
        let db: ServiceName = "db".parse().unwrap();
        task.spec.container.ipc = Some(Namespace::Service(db.clone()));
        task.spec.container.pid = Some(Namespace::Mode("host".into()));
        task.spec.container.volumes_from = vec![VolumesFrom { service: db.clone(), read_only: true }];
        let error = container_config(&task, &plain(), &Labels::new("c1"), OLD).unwrap_err();
        assert!(error.is_temporary() && error.to_string().contains("IPC namespace"), "{error}");
        let beside =
            Surroundings { companions: BTreeMap::from([(db, ContainerId("abc".into()))]), ..plain() };
        let host = made(&task, &beside, OLD).body.host_config.unwrap();
        assert_eq!(
            (host.ipc_mode.as_deref(), host.pid_mode.as_deref(), host.volumes_from),
            (Some("container:abc"), Some("host"), Some(vec!["abc:ro".to_owned()]))
        );
        task.spec.network_mode = NetworkMode::Bridge;
        let bridged = made(&task, &beside, OLD).body;
        assert_eq!(bridged.host_config.unwrap().network_mode.as_deref(), Some("bridge"));
        assert!(bridged.networking_config.is_none());
    }

    #[test]
    fn a_connection_is_made_as_its_service_says_or_not_at_all() {
        let task = sample_task(1, "web", "img");
        let connected = |endpoint: EndpointSpec, api| {
            let mut surroundings = plain();
            surroundings.networks[1].endpoint = endpoint;
            container_config(&task, &surroundings, &Labels::new("c1"), api)
        };
        let spec = |text: &str| serde_json::from_str::<EndpointSpec>(text).unwrap();
        for (endpoint, needs) in [
            (r#"{"mac_address": "02:42:ac:11:00:02"}"#, "25"),
            (r#"{"interface_name": "data0"}"#, "28"),
            (r#"{"gw_priority": 7}"#, "28"),
            (r#"{"driver_opts": {"com.docker.network.endpoint.sysctls": "x"}}"#, "27"),
        ] {
            let error = connected(spec(endpoint), OLD).unwrap_err();
            let text = error.to_string();
            assert!(!error.is_temporary() && text.contains(needs) && text.contains("1.41"), "{text}");
            connected(spec(endpoint), NEW).unwrap();
        }
        let old = connected(spec(r#"{"link_local_ips": ["169.254.8.8"], "driver_opts": {"a": "b"}}"#), OLD);
        let (_, back) = &old.unwrap().connect[0];
        let addresses = back.ipam_config.as_ref().unwrap().link_local_ips.as_ref().unwrap();
        assert_eq!(addresses, &["169.254.8.8"]);
        assert_eq!(back.driver_opts.as_ref().unwrap()["a"], "b");

        let text = r#"{"mac_address": "02-42-AC-11-00-02", "interface_name": "data0", "gw_priority": 7}"#;
        let new = connected(spec(text), NEW).unwrap().body.networking_config.unwrap();
        let all = new.endpoints_config.unwrap();
        let back = &all["back"];
        assert_eq!((back.mac_address.as_deref(), back.gw_priority), (Some("02:42:ac:11:00:02"), Some(7)));
        assert_eq!(back.driver_opts.as_ref().unwrap()["com.docker.network.endpoint.ifname"], "data0");
        assert_eq!(all["front"].gw_priority, Some(0), "where the file says it of one, it says it of all");
    }

    #[test]
    fn mounts_that_need_a_newer_engine_say_so() {
        let bind = |recursive| MountSource::Bind {
            path: "/srv".into(),
            create: false,
            propagation: None,
            selinux: None,
            recursive,
        };
        let image = MountSource::Image { image: "tools:1".into(), subpath: Some("bin".into()) };
        let with = |source, api| {
            let mut task = sample_task(1, "web", "img");
            task.spec.container.mounts = vec![MountSpec { source, target: "/t".into(), read_only: true }];
            let host = container_config(&task, &plain(), &Labels::new("c1"), api)?.body.host_config.unwrap();
            Ok::<_, RuntimeError>(host.mounts.unwrap().remove(0))
        };
        let options = |recursive, api| with(bind(recursive), api).map(|mount| mount.bind_options.unwrap());
        assert_eq!(options(Recursion::Disabled, OLD).unwrap().non_recursive, Some(true));
        for (source, version) in
            [(bind(Recursion::Writable), "25"), (bind(Recursion::Readonly), "25"), (image.clone(), "28")]
        {
            assert!(with(source, OLD).unwrap_err().to_string().contains(version));
        }
        assert_eq!(options(Recursion::Writable, NEW).unwrap().read_only_non_recursive, Some(true));
        let strict = options(Recursion::Readonly, NEW).unwrap();
        assert_eq!(strict.read_only_force_recursive, Some(true));
        assert_eq!(strict.propagation, Some(MountBindOptionsPropagationEnum::RPRIVATE), "else it is refused");
        let mounted = with(image, NEW).unwrap();
        assert_eq!((mounted.typ, mounted.source.as_deref()), (Some(MountType::IMAGE), Some("tools:1")));
        assert_eq!(mounted.image_options.unwrap().subpath.as_deref(), Some("bin"));
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let own = with(MountSource::Anonymous { nocopy: true, labels }, OLD).unwrap().volume_options.unwrap();
        assert_eq!((own.no_copy, own.labels.unwrap()["a"].as_str()), (Some(true), "b"));
    }

    #[test]
    fn devices_are_paths_or_names_of_a_device_interface() {
        let mut task = sample_task(1, "web", "img");
        let device = |source: &str| wharf_model::DeviceMapping {
            source: source.into(),
            target: source.into(),
            permissions: "rwm".into(),
        };
        task.spec.container.devices = vec![device("/dev/fuse"), device("vendor.com/class=all")];
        let error = container_config(&task, &plain(), &Labels::new("c1"), OLD).unwrap_err().to_string();
        assert!(error.contains("vendor.com/class=all") && error.contains("25"), "{error}");
        let host = made(&task, &plain(), NEW).body.host_config.unwrap();
        assert_eq!(host.devices.unwrap().len(), 1);
        let request = host.device_requests.unwrap().remove(0);
        assert_eq!(
            (request.driver.as_deref(), request.device_ids),
            (Some("cdi"), Some(vec!["vendor.com/class=all".to_owned()]))
        );
    }

    #[test]
    fn output_is_bounded_where_nobody_has_said_anything_of_it() {
        let log = |typ: &str, config: &[(&str, &str)]| HostConfigLogConfig {
            typ: Some(typ.to_owned()),
            config: Some(
                config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ),
        };
        let bounded = |given: Option<HostConfigLogConfig>, engine: &str, engine_bounds| {
            let mut body = ContainerCreateBody {
                host_config: Some(HostConfig { log_config: given, ..HostConfig::default() }),
                ..ContainerCreateBody::default()
            };
            bound_output(&mut body, engine, engine_bounds);
            body.host_config.unwrap().log_config
        };
        let bounds = Some(log("json-file", &[("max-size", "20m"), ("max-file", "5")]));
        assert_eq!(bounded(None, "json-file", false), bounds);
        assert_eq!(bounded(Some(log("json-file", &[])), "journald", false), bounds);
        assert_eq!(bounded(None, "local", false), None, "it has these bounds by itself");
        assert_eq!(bounded(None, "json-file", true), None, "the engine's own settings count");
        let own = Some(log("json-file", &[("max-file", "9")]));
        assert_eq!(bounded(own.clone(), "json-file", false), own, "and so do the service's");
    }
    #[test]
    fn a_container_gets_the_devices_that_its_task_was_given() {
        let device = |kind: &str, id: Option<&str>, share: u64, driver: Option<&str>| TaskDevice {
            kind: kind.parse().unwrap(),
            id: id.map(Into::into),
            share,
            driver: driver.map(Into::into),
        };
        let request = |count: Option<i64>, capability: &str| wharf_model::DeviceRequest {
            count,
            capabilities: vec![capability.into()],
            ..Default::default()
        };
        let mut task = sample_task(1, "web", "img");
        task.spec.resources.devices = vec![request(Some(2), "gpu"), request(Some(1), "tpu")];
        task.devices = vec![
            device("gpu", Some("GPU-7"), 1000, None),
            device("gpu", Some("GPU-9"), 1000, None),
            device("ssd", None, 3000, None),
        ];
        let body = made(&task, &plain(), OLD).body;
        let requests = body.host_config.unwrap().device_requests.unwrap();
        let ids = Some(vec!["GPU-7".to_owned(), "GPU-9".to_owned()]);
        assert_eq!((requests[0].count, &requests[0].device_ids), (None, &ids));
        assert_eq!(
            (requests[1].count, &requests[1].device_ids),
            (Some(1), &None),
            "the engine finds these itself"
        );
        let env = body.env.unwrap();
        for variable in
            ["DOCKER_RESOURCE_GPU=GPU-7,GPU-9", "NVIDIA_VISIBLE_DEVICES=GPU-7,GPU-9", "DOCKER_RESOURCE_SSD=3"]
        {
            assert!(env.iter().any(|one| one == variable), "{env:?}");
        }

        // A share is requested of the driver that the node knows, and told in the environment; what the service says itself stays.
        task.spec.resources = Resources { gpu: Some(Default::default()), ..Resources::default() };
        task.spec.container.environment =
            BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), Some("none".to_owned()))]);
        task.devices = vec![device("NVIDIA-GPU", Some("GPU-7"), 250, Some("nvidia"))];
        let body = made(&task, &plain(), OLD).body;
        let requests = body.host_config.unwrap().device_requests.unwrap();
        assert_eq!(
            (requests[0].driver.as_deref(), &requests[0].device_ids),
            (Some("nvidia"), &Some(vec!["GPU-7".to_owned()]))
        );
        let env = body.env.unwrap();
        assert!(env.contains(&"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25".to_owned()), "{env:?}");
        assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=none".to_owned()), "{env:?}");
        task.devices = vec![device("gpu", Some("0"), 250, None)];
        assert_eq!(made(&task, &plain(), OLD).body.host_config.unwrap().device_requests, None);

        // A task of a server that gave out nothing asks as it always did.
        task.spec.resources = Resources { devices: vec![request(Some(2), "gpu")], ..Resources::default() };
        task.devices = Vec::new();
        let host = made(&task, &plain(), OLD).body.host_config.unwrap();
        assert_eq!(host.device_requests.unwrap()[0].count, Some(2));
    }
}
