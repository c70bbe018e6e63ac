//! The text in which userspace WireGuard is configured and asked: `set=1` and `get=1`, as the cross-platform description has it.
//!
//! - Both ends are ours, so only what we use is understood: peers with IPv6 addresses of their own, no preshared keys.
//! - One difference to other implementations: a peer that is changed keeps its session.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv6Addr, time::Duration};

use wharf_model::PublicKey;

use super::{
    keys::PrivateKey,
    plan::{Actual, ActualPeer, Change, PeerChange},
};

/// Why a text is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not understood")]
pub(super) struct NotUnderstood(String);

/// What is asked of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Get,
    Set(Change),
}

/// Writes a request.
pub(super) fn write_request(request: &Request) -> String {
    let change = match request {
        Request::Get => return "get=1\n\n".to_owned(),
        Request::Set(change) => change,
    };
    let mut text = String::from("set=1\n");
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key}={value}");
    };
    if let Some(key) = &change.key {
        line("private_key", &hex::encode(key.0));
    }
    if let Some(port) = change.port {
        line("listen_port", &port);
    }
    for (key, change) in &change.peers {
        line("public_key", &hex::encode(key.0));
        match change {
            PeerChange::Remove => line("remove", &true),
            PeerChange::Set { endpoint, keepalive, addresses } => {
                if let Some(endpoint) = endpoint {
                    line("endpoint", endpoint);
                }
                if let Some(keepalive) = keepalive {
                    line("persistent_keepalive_interval", keepalive);
                }
                if let Some(addresses) = addresses {
                    line("replace_allowed_ips", &true);
                    addresses.iter().for_each(|address| line("allowed_ip", &format_args!("{address}/128")));
                }
            }
        }
    }
    text.push('\n');
    text
}

/// Reads a request.
pub(super) fn read_request(text: &str) -> Result<Request, NotUnderstood> {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    match lines.next() {
        Some("get=1") => return Ok(Request::Get),
        Some("set=1") => {}
        other => return Err(NotUnderstood(other.unwrap_or_default().to_owned())),
    }
    let mut change = Change::default();
    for line in lines {
        let wrong = || NotUnderstood(line.split('=').next().unwrap_or_default().to_owned());
        let (key, value) = line.split_once('=').ok_or_else(wrong)?;
        if key == "public_key" {
            let set = PeerChange::Set { endpoint: None, keepalive: None, addresses: None };
            change.peers.push((PublicKey(bytes(value).ok_or_else(wrong)?), set));
            continue;
        }
        match (key, change.peers.last_mut()) {
            ("private_key", None) => change.key = Some(PrivateKey(bytes(value).ok_or_else(wrong)?)),
            ("listen_port", None) => change.port = Some(value.parse().map_err(|_| wrong())?),
            ("remove", Some((_, peer))) if value == "true" => *peer = PeerChange::Remove,
            (key, Some((_, PeerChange::Set { endpoint, keepalive, addresses }))) => match key {
                "endpoint" => *endpoint = Some(value.parse().map_err(|_| wrong())?),
                "persistent_keepalive_interval" => *keepalive = Some(value.parse().map_err(|_| wrong())?),
                "replace_allowed_ips" if value == "true" => *addresses = Some(BTreeSet::new()),
                "allowed_ip" => {
                    let address = value.strip_suffix("/128").and_then(|text| text.parse().ok());
                    addresses.get_or_insert_default().insert(address.ok_or_else(wrong)?);
                }
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        }
    }
    Ok(Request::Set(change))
}

/// Writes what a device has. The private key is not told.
pub(super) fn write_answer(actual: &Actual) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(text, "{key}={value}");
    };
    if let Some(key) = actual.key {
        line("own_public_key", &hex::encode(key.0));
    }
    line("listen_port", &actual.port);
    for (key, peer) in &actual.peers {
        line("public_key", &hex::encode(key.0));
        if let Some(endpoint) = peer.endpoint {
            line("endpoint", &endpoint);
        }
        if let Some(ago) = peer.handshake {
            line("last_handshake_ago_msec", &ago.as_millis());
        }
        line("rx_bytes", &peer.received);
        line("tx_bytes", &peer.sent);
        line("persistent_keepalive_interval", &peer.keepalive);
        peer.addresses.iter().for_each(|address| line("allowed_ip", &format_args!("{address}/128")));
    }
    line("errno", &0);
    text.push('\n');
    text
}

/// Reads what a device has, or says of a change.
pub(super) fn read_answer(text: &str) -> Result<Actual, NotUnderstood> {
    let mut actual = Actual::default();
    let mut last: Option<PublicKey> = None;
    for line in text.lines().filter(|line| !line.is_empty()) {
        let wrong = || NotUnderstood(line.to_owned());
        let (key, value) = line.split_once('=').ok_or_else(wrong)?;
        let number = || value.parse::<u64>().map_err(|_| wrong());
        if key == "public_key" {
            let key = PublicKey(bytes(value).ok_or_else(wrong)?);
            actual.peers.insert(key, ActualPeer::default());
            last = Some(key);
            continue;
        }
        let peer = last.and_then(|last| actual.peers.get_mut(&last));
        match (key, peer) {
            ("errno", _) if value == "0" => {}
            ("own_public_key", None) => actual.key = Some(PublicKey(bytes(value).ok_or_else(wrong)?)),
            ("listen_port", None) => actual.port = value.parse().map_err(|_| wrong())?,
            ("endpoint", Some(peer)) => peer.endpoint = Some(value.parse().map_err(|_| wrong())?),
            ("last_handshake_ago_msec", Some(peer)) => {
                peer.handshake = Some(Duration::from_millis(number()?));
            }
            ("rx_bytes", Some(peer)) => peer.received = number()?,
            ("tx_bytes", Some(peer)) => peer.sent = number()?,
            ("persistent_keepalive_interval", Some(peer)) => {
                peer.keepalive = value.parse().map_err(|_| wrong())?;
            }
            ("allowed_ip", Some(peer)) => {
                let address = value.strip_suffix("/128").and_then(|text| text.parse::<Ipv6Addr>().ok());
                peer.addresses.insert(address.ok_or_else(wrong)?);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(actual)
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let address: Ipv6Addr = "fd77:6861:7266::1".parse().unwrap();
        let set = PeerChange::Set {
            endpoint: Some("[2001:db8::1]:7421".parse().unwrap()),
            keepalive: Some(25),
            addresses: Some(BTreeSet::from([address])),
        };
        let none = PeerChange::Set { endpoint: None, keepalive: None, addresses: Some(BTreeSet::new()) };
        let change = Change {
            key: Some(PrivateKey([1; 32])),
            port: Some(7421),
            peers: vec![
                (PublicKey([2; 32]), PeerChange::Remove),
                (PublicKey([3; 32]), set),
                (PublicKey([4; 32]), none),
            ],
        };
        for request in [Request::Get, Request::Set(change), Request::Set(Change::default())] {
            assert_eq!(read_request(&write_request(&request)), Ok(request));
        }
        let peer = ActualPeer {
            endpoint: Some("192.0.2.1:7421".parse().unwrap()),
            keepalive: 25,
            addresses: BTreeSet::from([address]),
            handshake: Some(Duration::from_millis(1234)),
            received: 1,
            sent: 2,
        };
        let peers = [(PublicKey([2; 32]), peer), (PublicKey([3; 32]), ActualPeer::default())].into();
        let actual = Actual { key: Some(PublicKey([7; 32])), port: 7421, peers };
        assert_eq!(read_answer(&write_answer(&actual)), Ok(actual));
        assert_eq!(read_request("set=1\nprivate_key=secret\n"), Err(NotUnderstood("private_key".into())));
    }
}
