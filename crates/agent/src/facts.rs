//! What the node says of itself.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use wharf_model::{Bytes, Cpus, DeviceKind, NodeDevice, NodeDevices, NodeFacts, Platform};

use crate::runtime::{RuntimeError, RuntimeFacts};

/// What is known of the machine without its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name.
    pub hostname: String,
    /// The address other nodes reach it at.
    pub address: IpAddr,
    /// Processors.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Bytes,
    /// Kernel release.
    pub kernel: String,
    /// In OCI's terms.
    pub architecture: String,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Version of the agent.
    pub agent_version: String,
    /// Devices that people said it has; what they say of a kind counts for all of it.
    pub devices: Vec<NodeDevices>,
    /// Where NVIDIA's driver lists its GPUs.
    pub nvidia: PathBuf,
}

impl Machine {
    /// Looks at the machine this runs on.
    pub fn look(address: IpAddr, agent_version: &str) -> Self {
        let names = nix::sys::utsname::uname().ok();
        let text = |pick: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            names.as_ref().map(|names| pick(names).to_string_lossy().into_owned()).unwrap_or_default()
        };
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            hostname: text(nix::sys::utsname::UtsName::nodename),
            address,
            cpus: Cpus(u64::try_from(processors).unwrap_or(1) * 1000),
            memory: memory_total(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            kernel: text(nix::sys::utsname::UtsName::release),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
            cgroup_version: if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                2
            } else {
                1
            },
            agent_version: agent_version.to_owned(),
            devices: Vec::new(),
            nvidia: PathBuf::from("/proc/driver/nvidia/gpus"),
        }
    }

    /// The node's facts: the machine's, and the engine's if it answered.
    pub fn facts(&self, engine: &Result<RuntimeFacts, RuntimeError>, taken_ports: Vec<u16>) -> NodeFacts {
        NodeFacts {
            hostname: self.hostname.clone(),
            address: self.address,
            platform: Platform { os: "linux".to_owned(), arch: self.architecture.clone() },
            cpus: self.cpus,
            memory: self.memory,
            disk: None,
            images: Vec::new(),
            kernel: self.kernel.clone(),
            cgroup_version: engine.as_ref().map_or(self.cgroup_version, |facts| facts.cgroup_version),
            agent_version: self.agent_version.clone(),
            engine: engine.as_ref().ok().map(|facts| facts.engine.clone()),
            engine_error: engine.as_ref().err().map(ToString::to_string),
            taken_ports,
            devices: self
                .all_devices(engine.as_ref().map(|facts| facts.devices.as_slice()).unwrap_or_default()),
            subnets: Vec::new(),
            wireguard: None,
            seen_from: None,
            disks: Vec::new(),
            cleanup: None,
        }
    }
}

impl Machine {
    /// The devices that tasks can be given: what people said, what the engine was told, and what the driver lists, each kind from the first
    /// that has it. GPUs of one maker are one kind, whoever names them.
    fn all_devices(&self, engine: &[NodeDevices]) -> Vec<NodeDevices> {
        let listed = nvidia_gpus(&self.nvidia);
        let mut all = self.devices.clone();
        all.extend(
            engine.iter().filter(|pool| !self.devices.iter().any(|said| said.kind == pool.kind)).cloned(),
        );
        let known = |id: &str| all.iter().flat_map(|pool| &pool.named).any(|device| device.id == id);
        let has_gpus = all.iter().any(|pool| pool.kind.is_gpu());
        // A number or a UUID may mean the same GPU: where somebody names any, the driver only adds what they are.
        let new: Vec<_> = listed.iter().filter(|device| !has_gpus && !known(&device.id)).cloned().collect();
        for device in all.iter_mut().filter(|pool| pool.kind.is_gpu()).flat_map(|pool| &mut pool.named) {
            let number = device.id.parse::<usize>().ok();
            let found = listed.iter().find(|other| other.id == device.id).or_else(|| listed.get(number?));
            if let Some(found) = found {
                device.model = device.model.take().or_else(|| found.model.clone());
                device.driver = device.driver.take().or_else(|| found.driver.clone());
            }
        }
        if !new.is_empty() {
            all.push(NodeDevices { kind: DeviceKind::gpu(), named: new, count: 0 });
        }
        all.retain(|pool| !pool.is_empty());
        all
    }
}

/// The GPUs that NVIDIA's driver lists, in the order of their numbers, which is that of the bus.
fn nvidia_gpus(folder: &Path) -> Vec<NodeDevice> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path().join("information")).collect();
    paths.sort();
    paths.iter().filter_map(|path| nvidia_gpu(&std::fs::read_to_string(path).ok()?)).collect()
}

fn nvidia_gpu(information: &str) -> Option<NodeDevice> {
    let field = |name: &str| {
        let mut lines = information.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let id = field("GPU UUID").filter(|id| id.starts_with("GPU-") && !id.contains('?'))?;
    Some(NodeDevice { id, model: field("Model"), memory: None, driver: Some("nvidia".to_owned()) })
}

/// `MemTotal` of `/proc/meminfo`.
fn memory_total(meminfo: &str) -> Bytes {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    Bytes(kibibytes * 1024)
}

/// The ports on which something in this network namespace listens or, for UDP, is bound.
pub fn listening_ports() -> BTreeSet<u16> {
    /// The kernel's number for a TCP socket that listens, and for a UDP socket that is bound.
    const LISTEN: &str = "0A";
    const BOUND: &str = "07";
    /// Above, UDP ports are those of clients that ask something and are gone.
    const CLIENTS: u16 = 32_768;
    let tables = [("tcp", LISTEN), ("tcp6", LISTEN), ("udp", BOUND), ("udp6", BOUND)];
    let read = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let ports = tables.iter().flat_map(|(name, state)| {
        ports_of(&read(name), state).into_iter().filter(|port| *state == LISTEN || *port < CLIENTS)
    });
    ports.collect()
}

fn ports_of(table: &str, state: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        (fields.nth(1)? == state).then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).filter(|port| *port != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_ports_are_read_from_the_kernels_tables() {
        assert_eq!(memory_total("MemTotal:       24568 kB\nMemFree: 1 kB\n"), Bytes(24568 * 1024));
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:0050 0100007F:C350 01 00000000:00000000\n";
        assert_eq!(ports_of(table, "0A"), [8080]);
    }

    #[test]
    fn devices_are_what_people_the_engine_and_the_driver_say() {
        let folder = tempfile::tempdir().unwrap();
        let mut machine = Machine::look([10, 0, 0, 1].into(), "1");
        machine.nvidia = folder.path().to_owned();
        assert!(machine.all_devices(&[]).is_empty());
        for (bus, id) in [("0000:3b:00.0", "GPU-2"), ("0000:1a:00.0", "GPU-1")] {
            std::fs::create_dir(folder.path().join(bus)).unwrap();
            let text = format!("Model: \t\t NVIDIA A10\nIRQ:   \t\t 12\nGPU UUID: \t {id}\n");
            std::fs::write(folder.path().join(bus).join("information"), text).unwrap();
        }
        let said = |devices: &[NodeDevices]| {
            devices
                .iter()
                .map(|pool| {
                    format!("{pool}: {:?}", pool.named.iter().map(|device| &*device.id).collect::<Vec<_>>())
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(said(&machine.all_devices(&[])), [r#"2 gpu (NVIDIA A10): ["GPU-1", "GPU-2"]"#]);
        let engine = ["NVIDIA-GPU=GPU-2", "ssd=3"].map(|text| text.parse().unwrap());
        let found = machine.all_devices(&engine);
        assert_eq!(
            said(&found),
            [r#"1 NVIDIA-GPU (NVIDIA A10): ["GPU-2"]"#, "3 ssd: []"],
            "no GPU is there twice"
        );
        machine.devices = ["gpu=1", "ssd=0"].map(|text| text.parse().unwrap()).into();
        let found = machine.all_devices(&engine[1..]);
        assert_eq!(said(&found), [r#"1 gpu (NVIDIA A10): ["0"]"#], "what people say counts for the kind");
    }

    #[test]
    fn a_listening_port_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&listener.local_addr().unwrap().port()));
    }
}
