//! What the node says of itself.

use std::{collections::BTreeSet, net::IpAddr};

use wharf_model::{Bytes, Cpus, NodeFacts, Platform};

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
            subnets: Vec::new(),
            wireguard: None,
            seen_from: None,
        }
    }
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
    fn a_listening_port_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&listener.local_addr().unwrap().port()));
    }
}
