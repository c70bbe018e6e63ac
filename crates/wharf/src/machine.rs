//! What the command line has to know of the machine it runs on: its addresses, and whether systemd runs it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use wharf_api::transport::ServerAddress;

use crate::hint;

/// An address that is never used (RFC 5737): what would be sent there takes the default route.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// The address this machine would use to reach `to`. Nothing is sent.
fn source_for(to: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The address other machines reach this one at, as far as can be told: the one it reaches `server` from.
pub(crate) fn address_towards(server: Option<&ServerAddress>) -> IpAddr {
    let towards = server
        .and_then(|server| (server.host(), server.port()).to_socket_addrs().ok()?.next())
        .and_then(source_for)
        .filter(|address| !address.is_loopback());
    towards.or_else(|| source_for(ELSEWHERE.into())).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The machine's host name, as nodes may be called.
pub(crate) fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let name: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() { "node".into() } else { name }
}

/// Whether systemd is this machine's init.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Where a unit's file goes.
pub(crate) fn unit_path(unit: &str) -> PathBuf {
    Path::new("/etc/systemd/system").join(format!("{unit}.service"))
}

/// The unit of a role. An agent comes before Docker Engine is asked for anything and needs it for nothing; both are stopped
/// without their containers.
pub(crate) fn unit(description: &str, arguments: &[String]) -> Result<String> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let quoted: Vec<_> = arguments.iter().map(|argument| quote(argument)).collect();
    Ok(format!(
        "[Unit]\n\
         Description={description}\n\
         Wants=network-online.target\n\
         After=network-online.target docker.service\n\
         \n\
         [Service]\n\
         ExecStart={} {}\n\
         Restart=always\n\
         RestartSec=1\n\
         # Containers belong to the engine: stopping this touches none.\n\
         KillMode=process\n\
         TimeoutStopSec=30\n\
         LimitNOFILE=1048576\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        quote(&program.to_string_lossy()),
        quoted.join(" ")
    ))
}

/// As systemd.service(5) has quoting; `%` and `$` would be expanded.
fn quote(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = escaped.chars().all(|c| c.is_ascii_alphanumeric() || "/._:-=,@[]".contains(c));
    if plain && !escaped.is_empty() { escaped } else { format!("\"{escaped}\"") }
}

/// Writes a unit, and starts it now and at every boot.
pub(crate) fn install(unit: &str, text: &str) -> Result<()> {
    let path = unit_path(unit);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", unit])
}

fn systemctl(arguments: &[&str]) -> Result<()> {
    let line = format!("systemctl {}", arguments.join(" "));
    let output =
        Command::new("systemctl").args(arguments).output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        bail!(hint(
            format!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
            "`journalctl -xe` says more"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_quote_what_systemd_would_expand() {
        assert_eq!(quote("/usr/local/bin/wharf"), "/usr/local/bin/wharf");
        assert_eq!(quote("/var/lib/my wharf"), "\"/var/lib/my wharf\"");
        assert_eq!(quote("50%"), "\"50%%\"");
        let text = unit("Wharf agent", &["agent".into(), "run".into()]).unwrap();
        assert!(text.contains(" agent run\n"), "{text}");
        assert!(text.contains("KillMode=process"));
    }

    #[test]
    fn host_names_become_legal_node_names() {
        assert!(hostname().parse::<wharf_model::NodeName>().is_ok());
    }
}
