//! How a service's containers are made: everything that goes to the engine as it stands.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wharf_model::{Blkio, Bytes, ContainerSpec, DeviceMapping, Hook, Logging, Ulimit};

use super::{Typing, values};
use crate::diagnostic::{Complaint, Key, Span};
use crate::node::{Entry, Mapping, Node, Value};
use crate::project::Reference;

impl Typing<'_, '_> {
    pub(super) fn container(&mut self, service: &Mapping, key: &Key<'_>) -> ContainerSpec {
        let mut spec = ContainerSpec::default();
        for (field, entry) in service.iter() {
            let key = key.field(field);
            if entry.node.is_invalid() {
                continue;
            }
            self.container_key(&mut spec, field, entry, &key);
        }
        self.environment(service, key, &mut spec);
        self.container_labels(service, key, &mut spec);
        spec
    }

    /// One key; those that say nothing about containers are read elsewhere, and listed there.
    fn container_key(&mut self, spec: &mut ContainerSpec, field: &str, entry: &Entry, key: &Key<'_>) {
        match field {
            "command" => spec.command = values::command(self.report(), entry, key),
            "entrypoint" => spec.entrypoint = values::command(self.report(), entry, key),
            "working_dir" => spec.working_dir = values::full_text(self.report(), entry, key),
            "user" => spec.user = values::full_text(self.report(), entry, key),
            "hostname" => spec.hostname = self.host_name(entry, key),
            "domainname" => spec.domainname = values::full_text(self.report(), entry, key),
            "annotations" => spec.annotations = values::text_map(entry),
            "tty" => spec.tty = values::flag(entry).unwrap_or_default(),
            "stdin_open" => spec.stdin_open = values::flag(entry).unwrap_or_default(),
            "init" => spec.init = values::flag(entry),
            "read_only" => spec.read_only = values::flag(entry).unwrap_or_default(),
            "privileged" => spec.privileged = values::flag(entry).unwrap_or_default(),
            "cap_add" => spec.cap_add = values::strings(entry),
            "cap_drop" => spec.cap_drop = values::strings(entry),
            "security_opt" => spec.security_opt = self.security_options(entry, key),
            "group_add" => spec.group_add = values::strings(entry),
            "devices" => spec.devices = self.devices(entry, key),
            "device_cgroup_rules" => spec.device_cgroup_rules = values::strings(entry),
            "dns" => spec.dns = self.name_servers(entry, key),
            "dns_search" => spec.dns_search = values::strings(entry),
            "dns_opt" => spec.dns_opt = values::strings(entry),
            "extra_hosts" => spec.extra_hosts = extra_hosts(entry),
            "uts" => spec.uts = self.namespace(entry, key, &["host"]),
            "userns_mode" => spec.userns_mode = self.namespace(entry, key, &["host"]),
            "cgroup" => spec.cgroup = values::text(entry),
            "cgroup_parent" => spec.cgroup_parent = values::full_text(self.report(), entry, key),
            "shm_size" => spec.shm_size = values::size(self.report(), entry, key).map(Bytes),
            "sysctls" => spec.sysctls = self.sysctls(entry, key),
            "ulimits" => spec.ulimits = self.ulimits(entry, key),
            "tmpfs" => spec.tmpfs = self.memory_mounts(entry, key),
            "volumes" => spec.mounts = self.mounts(entry, key),
            "logging" => spec.logging = logging(entry),
            "oom_kill_disable" => spec.oom_kill_disable = values::flag(entry).unwrap_or_default(),
            "oom_score_adj" => spec.oom_score_adj = values::whole(self.report(), entry, key, -1000..=1000),
            "mem_swappiness" => spec.mem_swappiness = values::whole(self.report(), entry, key, -1..=100),
            "memswap_limit" => spec.memswap_limit = values::size_or_unlimited(entry),
            "cpu_shares" => spec.cpu_shares = values::whole(self.report(), entry, key, 0..=i64::MAX),
            "cpu_period" => spec.cpu_period = values::microseconds(self.report(), entry, key),
            "cpu_quota" => spec.cpu_quota = values::microseconds(self.report(), entry, key),
            "cpu_rt_period" => spec.cpu_rt_period = values::microseconds(self.report(), entry, key),
            "cpu_rt_runtime" => spec.cpu_rt_runtime = values::microseconds(self.report(), entry, key),
            "cpuset" => spec.cpuset = values::full_text(self.report(), entry, key),
            "blkio_config" => spec.blkio = Some(self.block_io(entry, key)),
            "runtime" => spec.runtime = values::full_text(self.report(), entry, key),
            "storage_opt" => spec.storage_opt = values::text_map(entry),
            "stop_signal" => spec.stop_signal = self.signal(entry, key),
            "stop_grace_period" => spec.stop_grace_period = values::duration(entry),
            "post_start" => spec.post_start = self.hooks(entry, key),
            "pre_stop" => spec.pre_stop = self.hooks(entry, key),
            // Read by `Typing::service`; the rest is refused there.
            "ipc" | "pid" | "image" | "build" | "pull_policy" | "platform" | "scale" | "deploy"
            | "restart" | "depends_on" | "links" | "networks" | "network_mode" | "ports" | "expose"
            | "healthcheck" | "configs" | "secrets" | "gpus" | "container_name" | "profiles" | "x-wharf"
            | "external" | "triggers" | "environment" | "env_file" | "labels" | "label_file" | "cpus"
            | "mem_limit" | "mem_reservation" | "pids_limit" | "develop" | "attach" | "external_links"
            | "volumes_from" | "mac_address" | "cpu_count" | "cpu_percent" | "isolation"
            | "credential_spec" | "pre_start" | "provider" | "models" | "use_api_socket"
            | "pull_refresh_after" => {}
            _ => self.unforeseen(entry, key),
        }
    }

    /// `env_file` first, `environment` over it; bare names are taken from the environment.
    fn environment(&mut self, service: &Mapping, key: &Key<'_>, spec: &mut ContainerSpec) {
        if let Some(files) = service.entry("env_file") {
            let outer = self.environment;
            let own = service.get("environment").and_then(Node::as_mapping);
            let own = |name: &str| own?.get(name)?.as_str().map(str::to_owned);
            let lookup = |name: &str| outer.get(name).cloned().or_else(|| own(name));
            let found = self.variables_of(files, &key.field("env_file"), &lookup);
            spec.environment.extend(found.into_iter().map(|(name, value)| (name, Some(value))));
        }
        let Some(entry) = service.entry("environment") else { return };
        let group = key.field("environment");
        for (name, entry) in values::entries(entry) {
            match &entry.node.value {
                Value::String(value) => {
                    self.placeholders(value, entry.place(), &group.field(name));
                    spec.environment.insert(name.to_owned(), Some(value.clone()));
                }
                Value::Null => {
                    let outer = self.environment.get(name).cloned();
                    let inner = spec.environment.get(name).cloned().flatten();
                    spec.environment.insert(name.to_owned(), outer.or(inner));
                }
                _ => {}
            }
        }
    }

    fn container_labels(&mut self, service: &Mapping, key: &Key<'_>, spec: &mut ContainerSpec) {
        if let Some(files) = service.entry("label_file") {
            spec.labels = self.variables_of(files, &key.field("label_file"), &|_| None);
        }
        if let Some(entry) = service.entry("labels") {
            spec.labels.extend(values::text_map(entry));
        }
    }

    fn host_name(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let name = values::full_text(self.report(), entry, key)?;
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        // What a task has in the place of a placeholder is a part of a host name.
        let has_placeholders = self.placeholders(&name, entry.place(), key);
        if has_placeholders || name.len() <= 253 && name.split('.').all(label) {
            return Some(name);
        }
        let message = format!("`{name}` is not a host name");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("use letters, digits and `-`, with dots between labels");
        None
    }

    /// As the engine takes them: a seccomp profile that is a file is put in its place, since nodes do not have the file.
    fn security_options(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<String> {
        let mut options = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            let seccomp = text.split_once(['=', ':']).filter(|(name, _)| *name == "seccomp");
            match seccomp.map(|(_, profile)| profile) {
                None => options.push(text.to_owned()),
                Some(known @ ("unconfined" | "builtin")) => options.push(format!("seccomp={known}")),
                Some(profile) => {
                    let profile = self.seccomp_profile(profile, item.span, &key.item(index));
                    options.extend(profile.map(|profile| format!("seccomp={profile}")));
                }
            }
        }
        options
    }

    /// The profile itself, written out or in a file of the project's folder.
    fn seccomp_profile(&mut self, profile: &str, span: Span, key: &Key<'_>) -> Option<String> {
        let text = if profile.trim_start().starts_with('{') {
            profile.to_owned()
        } else {
            let path = crate::canonical::clean(&self.assembly.folder.join(profile));
            self.assembly.text(&path, Some(Reference { span, key }))?
        };
        match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(serde_json::Value::Object(parsed)) => Some(serde_json::Value::Object(parsed).to_string()),
            Ok(_) | Err(_) => {
                let message = format!("the seccomp profile `{profile}` is not a JSON object");
                self.report()
                    .error(Complaint::InvalidValue, span, key, message)
                    .hint("name a file with a profile as Docker reads it, or write `seccomp=unconfined`");
                None
            }
        }
    }

    fn devices(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<DeviceMapping> {
        let mut devices = Vec::new();
        for (index, item, device) in values::mappings(entry) {
            let text = |name: &str| device.get(name).and_then(Node::as_str).unwrap_or_default().to_owned();
            let (source, target, permissions) = (text("source"), text("target"), text("permissions"));
            if !source.starts_with('/') && !is_interface(&source) {
                let message =
                    format!("the device `{source}` is neither a path nor a name of a device interface");
                self.report()
                    .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                    .hint("name a path such as `/dev/ttyUSB0`, or a device such as `vendor.com/class=name`");
                continue;
            }
            devices.push(DeviceMapping { source, target, permissions });
        }
        devices
    }

    fn name_servers(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for (index, item) in entry.node.as_sequence().unwrap_or_default().iter().enumerate() {
            let Some(text) = item.as_str() else { continue };
            match text.parse() {
                Ok(address) => servers.push(address),
                Err(_) => {
                    let message = format!("`{text}` is not an IP address of a name server");
                    self.report()
                        .error(Complaint::InvalidValue, item.span, &key.item(index), message)
                        .hint("write for example `8.8.8.8`");
                }
            }
        }
        servers
    }

    /// A namespace of the node or the container's own, but not one of another container.
    pub(super) fn namespace(&mut self, entry: &Entry, key: &Key<'_>, known: &[&str]) -> Option<String> {
        let mode = values::text(entry).filter(|mode| !mode.is_empty())?;
        if known.contains(&mode.as_str()) {
            return Some(mode);
        }
        let name = key.name();
        if mode.starts_with("container:") {
            let (message, hint) = match name {
                "ipc" | "pid" => (
                    "a container of one node cannot be named from a cluster".to_owned(),
                    format!("name a service of this app: `{name}: service:NAME`"),
                ),
                _ => (
                    format!("`{name}` cannot be that of another container"),
                    format!("write `{name}: host`, or remove it"),
                ),
            };
            self.report().unsupported(entry.place(), key, message).hint(hint);
        } else {
            let message = format!("`{mode}` is not a mode of `{name}`");
            let hint = crate::shape::one_of(known);
            self.report().error(Complaint::InvalidValue, entry.place(), key, message).hint(hint);
        }
        None
    }

    fn sysctls(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, String> {
        for (name, entry) in values::entries(entry) {
            if entry.node.is_null() {
                let message = format!("the kernel parameter `{name}` has no value");
                self.report()
                    .error(Complaint::InvalidValue, entry.key, &key.field(name), message)
                    .hint(format!("write `{name}: 1`"));
            }
        }
        values::text_map(entry)
    }

    pub(super) fn ulimits(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, Ulimit> {
        const NAMES: [&str; 15] = [
            "as",
            "core",
            "cpu",
            "data",
            "fsize",
            "locks",
            "memlock",
            "msgqueue",
            "nice",
            "nofile",
            "nproc",
            "rss",
            "rtprio",
            "rttime",
            "sigpending",
        ];
        let mut limits = BTreeMap::new();
        for (name, entry) in values::entries(entry) {
            let key = key.field(name);
            if !NAMES.contains(&name) && name != "stack" {
                let hint = crate::diagnostic::did_you_mean(name, NAMES)
                    .unwrap_or_else(|| "write for example `nofile` or `nproc`".to_owned());
                let message = format!("`{name}` is not a ulimit");
                self.report().error(Complaint::InvalidValue, entry.key, &key, message).hint(hint);
                continue;
            }
            let bounds = -1..=i64::MAX;
            let limit = match entry.node.as_mapping() {
                None => {
                    values::whole(self.report(), entry, &key, bounds).map(|n| Ulimit { soft: n, hard: n })
                }
                Some(mapping) => {
                    let mut read = |field: &str| {
                        let entry = mapping.entry(field)?;
                        values::whole(&mut self.assembly.report, entry, &key.field(field), bounds.clone())
                    };
                    read("soft").zip(read("hard")).map(|(soft, hard)| Ulimit { soft, hard })
                }
            };
            if let Some(limit) = limit {
                if limit.hard != -1 && (limit.soft > limit.hard || limit.soft == -1) {
                    let message = format!("the soft limit of `{name}` is above its hard limit");
                    self.report()
                        .error(Complaint::InvalidValue, entry.key, &key, message)
                        .hint("lower the soft one, or raise the hard one");
                }
                limits.insert(name.to_owned(), limit);
            }
        }
        limits
    }

    fn block_io(&mut self, entry: &Entry, key: &Key<'_>) -> Blkio {
        let mut spec = Blkio::default();
        for (field, entry) in values::entries(entry) {
            let key = key.field(field);
            match field {
                "weight" => spec.weight = values::whole(self.report(), entry, &key, 10..=1000),
                "weight_device" => {
                    for (index, item, mapping) in values::mappings(entry) {
                        let path = mapping.get("path").and_then(Node::scalar_text);
                        let weight = mapping.entry("weight").and_then(|weight| {
                            values::whole(&mut self.assembly.report, weight, &key.item(index), 10..=1000)
                        });
                        match (path, weight) {
                            (Some(path), Some(weight)) => {
                                spec.weight_device.insert(path, weight);
                            }
                            _ => {
                                self.report()
                                    .error(
                                        Complaint::MissingKey,
                                        item.span,
                                        &key.item(index),
                                        "a device's weight needs `path` and `weight`",
                                    )
                                    .hint("write for example `{path: /dev/sda, weight: 400}`");
                            }
                        }
                    }
                }
                "device_read_bps" => spec.device_read_bps = self.rates(entry, &key),
                "device_write_bps" => spec.device_write_bps = self.rates(entry, &key),
                "device_read_iops" => spec.device_read_iops = self.rates(entry, &key),
                "device_write_iops" => spec.device_write_iops = self.rates(entry, &key),
                _ => self.unforeseen(entry, &key),
            }
        }
        spec
    }

    fn rates(&mut self, entry: &Entry, key: &Key<'_>) -> BTreeMap<String, u64> {
        let mut rates = BTreeMap::new();
        for (index, item, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let path = mapping.get("path").and_then(Node::scalar_text);
            let rate = mapping.entry("rate").and_then(|rate| values::size(self.report(), rate, &key));
            match (path, rate) {
                (Some(path), Some(rate)) => {
                    rates.insert(path, rate);
                }
                _ => {
                    self.report()
                        .error(
                            Complaint::MissingKey,
                            item.span,
                            &key,
                            "a device's limit needs `path` and `rate`",
                        )
                        .hint("write for example `{path: /dev/sda, rate: 10mb}`");
                }
            }
        }
        rates
    }

    /// Commands to run in the container at a moment of its life.
    fn hooks(&mut self, entry: &Entry, key: &Key<'_>) -> Vec<Hook> {
        let mut hooks = Vec::new();
        for (index, item, mapping) in values::mappings(entry) {
            let key = key.item(index);
            let mut hook = Hook::default();
            for (field, value) in mapping.iter() {
                self.hook_key(&mut hook, field, value, &key.field(field));
            }
            if hook.command.is_empty() && !mapping.get("command").is_some_and(Node::is_invalid) {
                self.report()
                    .error(Complaint::MissingKey, item.span, &key, "a hook needs a command")
                    .hint("write `command: [\"sh\", \"-c\", \"…\"]`");
            }
            hooks.push(hook);
        }
        hooks
    }

    /// One key of a hook.
    pub(super) fn hook_key(&mut self, hook: &mut Hook, field: &str, value: &Entry, key: &Key<'_>) {
        match field {
            "command" => hook.command = values::command(self.report(), value, key).unwrap_or_default(),
            "user" => hook.user = values::full_text(self.report(), value, key),
            "working_dir" => hook.working_dir = values::full_text(self.report(), value, key),
            "privileged" => hook.privileged = values::flag(value).unwrap_or_default(),
            "environment" => hook.environment = self.hook_environment(value),
            _ => self.unforeseen(value, key),
        }
    }

    /// Bare names are taken from the environment; one that is set nowhere stays as the container has it.
    fn hook_environment(&self, entry: &Entry) -> BTreeMap<String, String> {
        let outer = |name: &str| Some((name.to_owned(), self.environment.get(name)?.clone()));
        let listed = entry.node.as_sequence().unwrap_or_default().iter().filter_map(Node::as_str);
        let listed = listed.filter_map(|text| match text.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => outer(text),
        });
        let named = values::entries(entry).filter_map(|(name, entry)| match &entry.node.value {
            Value::Null => outer(name),
            _ => Some((name.to_owned(), entry.node.scalar_text()?)),
        });
        listed.chain(named).collect()
    }

    fn signal(&mut self, entry: &Entry, key: &Key<'_>) -> Option<String> {
        let signal = values::full_text(self.report(), entry, key)?;
        let number = signal.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
        let name = signal.starts_with(|c: char| c.is_ascii_alphabetic()) && signal.chars().all(legal);
        if number || name {
            return Some(signal);
        }
        let message = format!("`{signal}` is not a signal");
        self.report()
            .error(Complaint::InvalidValue, entry.place(), key, message)
            .hint("write for example `SIGINT`");
        None
    }
}

/// The engine takes `name:address`.
fn extra_hosts(entry: &Entry) -> Vec<String> {
    values::strings(entry).into_iter().map(|line| line.replacen('=', ":", 1)).collect()
}

/// Whether a device is named as the Container Device Interface does: `vendor.com/class=name`.
fn is_interface(device: &str) -> bool {
    let parts = device.split_once('/').and_then(|(vendor, rest)| Some((vendor, rest.split_once('=')?)));
    parts.is_some_and(|(vendor, (class, name))| !vendor.is_empty() && !class.is_empty() && !name.is_empty())
}

fn logging(entry: &Entry) -> Option<Logging> {
    let mapping = entry.node.as_mapping()?;
    let driver = mapping.get("driver").and_then(Node::as_str).filter(|driver| !driver.is_empty());
    let options = mapping.entry("options").map(values::text_map).unwrap_or_default();
    Some(Logging { driver: driver.map(str::to_owned), options })
}
