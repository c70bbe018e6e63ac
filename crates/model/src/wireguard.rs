//! The WireGuard tunnels between nodes, inside which networks of [`crate::Backend::Wireguard`] run.
//!
//! - A node's address in the tunnels follows from its identifier: nobody hands it out, it never changes, and no two nodes have the same.
//! - Private keys are made on their node and never leave it; only public keys are in here.
//! - A new key is put into force only when every node that has a tunnel to its node says that it would accept it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize, de};

use crate::{NodeId, NodeName};

/// UDP port of the tunnels: beside the servers' TCP port, so that a firewall needs one range.
pub const WIREGUARD_PORT: u16 = 7421;

/// UDP port at which nodes tell each other what is alive while servers cannot. An empty datagram is answered with one of one byte.
pub const WORD_PORT: u16 = 7420;

/// Seconds between packets on a tunnel that has nothing to say. Routers that translate addresses forget a flow after 30 seconds or more; and
/// a tunnel that is heard of is known to work.
pub const WIREGUARD_KEEPALIVE: u16 = 25;

/// Where all nodes have their addresses in the tunnels, as a unique local prefix (RFC 4193) that spells `wharf`. Nothing outside
/// the tunnels ever sees an address of it, so that several clusters may have the same.
pub const TUNNEL_PREFIX: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd77, 0x6861, 0x7266, 0, 0, 0, 0, 0), 64);

/// The address of a node in the tunnels: the prefix, and the last 64 bits of its identifier, 62 of which are random.
pub fn tunnel_address(node: NodeId) -> Ipv6Addr {
    let (prefix, _) = TUNNEL_PREFIX;
    Ipv6Addr::from(u128::from(prefix) | u128::from(node.uuid().as_u64_pair().1))
}

/// Whether an address is one of a node in the tunnels.
pub fn is_tunnel(address: Ipv6Addr) -> bool {
    let (prefix, length) = TUNNEL_PREFIX;
    (u128::from(prefix) ^ u128::from(address)) >> (128 - length) == 0
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Not 32 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no WireGuard key: 32 bytes in base64, 44 characters")]
pub struct InvalidKey(pub String);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl fmt::Display for PublicKey {
    /// As `wg show` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(44);
        for chunk in self.0.chunks(3) {
            let byte = |at: usize| chunk.get(at).copied().map_or(0, u32::from);
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for position in 0..4_usize {
                let digit = bits >> (18 - 6 * position) & 63;
                let digit = ALPHABET[digit as usize];
                text.push(if position > chunk.len() { '=' } else { char::from(digit) });
            }
        }
        f.pad(&text)
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidKey(text.to_owned());
        let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43).ok_or_else(invalid)?;
        let (mut key, mut bits, mut count, mut at) = ([0_u8; 32], 0_u32, 0_u32, 0_usize);
        for digit in digits.bytes() {
            let value = ALPHABET.iter().position(|letter| *letter == digit).ok_or_else(invalid)?;
            bits = bits << 6 | u32::try_from(value).map_err(|_| invalid())?;
            count += 6;
            if count >= 8 {
                count -= 8;
                key[at] = (bits >> count & 0xff).to_le_bytes()[0];
                at += 1;
            }
        }
        // Two spellings of one key would be two keys to whoever compares texts.
        if bits & ((1 << count) - 1) == 0 { Ok(Self(key)) } else { Err(invalid()) }
    }
}
impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a node says of its end of the tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardFacts {
    /// Its public key in force.
    pub key: PublicKey,
    /// The rotation that key was made for: see [`WireguardAssignment::rotation`].
    #[serde(default)]
    pub rotation: u32,
    /// The public key that it will have next, once all others accept it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PublicKey>,
    /// Next keys of other nodes with which it would accept a tunnel now.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub accepts: BTreeSet<PublicKey>,
    /// Where other nodes reach it, if a person said so: the outer address of a router that forwards to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// What carries the tunnels, and why: the kernel, or a process. Absent as long as the node has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
}

/// The tunnels of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardAssignment {
    /// The node's own address in them.
    pub address: Ipv6Addr,
    /// The node's next key, once every other node accepts it: to be put into force now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promote: Option<PublicKey>,
    /// A key that was made for an earlier rotation is to be replaced. Only grows.
    #[serde(default)]
    pub rotation: u32,
    /// Other nodes reach each other through this one: it passes their packets on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relays: bool,
    /// The other nodes.
    pub peers: BTreeMap<NodeId, WireguardPeer>,
    /// Nodes that ought to be among the peers and cannot be: why, in words for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<String>,
}

/// Another node that is reached through a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardPeer {
    /// What people call it.
    pub name: NodeName,
    /// Its address in the tunnels.
    pub address: Ipv6Addr,
    /// Its public key in force.
    pub key: PublicKey,
    /// The key it will have next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PublicKey>,
    /// Where it is called at first; later, at whatever address it last called from. Without one it has to call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// The node that passes packets on to it, if neither of the two can call the other. No tunnel is made to it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<NodeId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_the_usual_tools_do() {
        // Of RFC 7748, section 6.1: Alice's public key.
        let text = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        let key: PublicKey = text.parse().expect("a key");
        assert_eq!(key.0[..4], [0x85, 0x20, 0xf0, 0x09]);
        assert_eq!(key.0[30..], [0x4e, 0x6a]);
        assert_eq!(key.to_string(), text);
        for wrong in [
            "",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=",
        ] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(InvalidKey(wrong.into())));
        }
    }
}
