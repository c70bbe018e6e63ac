//! The kernel's own WireGuard, over generic netlink.
//!
//! - Which messages are sent and how answers are read is pure; it was written from the kernel's documentation of the `wireguard` family.
//! - A socket stays in the network namespace of the thread that opened it.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};
use wharf_model::{PublicKey, Timestamp};

use super::plan::{Actual, ActualPeer, Change, PeerChange};

/// Peers in one message: few enough for the kernel's limit on one.
const PEERS: usize = 64;
/// The kernel answers at once or never.
const ANSWER: i64 = 5;

/// The `wireguard` family of a kernel that has it.
pub(super) struct Family {
    socket: Socket,
    id: u16,
    sequence: u32,
}

impl Family {
    /// None if the kernel has no WireGuard (or has not loaded it yet: making a device does).
    pub(super) fn open() -> io::Result<Option<Self>> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER, 0))?;
        let mut family = Self { socket, id: 0, sequence: 0 };
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        let answers = match family.ask(question, NLM_F_ACK) {
            Ok(answers) => answers,
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let id =
            answers.iter().flat_map(|answer| &answer.payload.nlas).find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
        Ok(id.map(|id| Self { id, ..family }))
    }

    /// What a device has.
    pub(super) fn read(&mut self, device: &str, now: Timestamp) -> io::Result<Actual> {
        let answers = self.ask(message(WireguardCmd::GetDevice, question(device)), NLM_F_DUMP)?;
        Ok(read(answers.iter().map(|answer| answer.payload.attributes.as_slice()), now))
    }

    /// Changes a device.
    pub(super) fn change(&mut self, device: &str, change: &Change) -> io::Result<()> {
        for attributes in write(device, change) {
            self.ask(message(WireguardCmd::SetDevice, attributes), NLM_F_ACK)?;
        }
        Ok(())
    }

    fn ask<T>(&mut self, mut question: GenlMessage<T>, flags: u16) -> io::Result<Vec<GenlMessage<T>>>
    where
        GenlMessage<T>: NetlinkSerializable + NetlinkDeserializable,
        T: std::fmt::Debug,
    {
        if self.id != 0 {
            question.set_resolved_family_id(self.id);
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let (mut answers, mut buffer) = (Vec::new(), Vec::with_capacity(1 << 16));
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let part = NetlinkMessage::<GenlMessage<T>>::deserialize(rest).map_err(io::Error::other)?;
                let length = (part.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if part.header.sequence_number != self.sequence {
                    continue;
                }
                match part.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

fn message(cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> GenlMessage<WireguardMessage> {
    GenlMessage::from_payload(WireguardMessage { cmd, attributes })
}

fn question(device: &str) -> Vec<WireguardAttribute> {
    vec![WireguardAttribute::IfName(device.to_owned())]
}

/// The attributes of each message that a change takes. The first has what concerns the device.
fn write(device: &str, change: &Change) -> Vec<Vec<WireguardAttribute>> {
    let mut peers = change.peers.chunks(PEERS);
    let mut first = question(device);
    first.extend(change.key.as_ref().map(|key| WireguardAttribute::PrivateKey(key.0)));
    first.extend(change.port.map(WireguardAttribute::ListenPort));
    let with = |mut attributes: Vec<_>, peers: &[(PublicKey, PeerChange)]| {
        attributes.push(WireguardAttribute::Peers(peers.iter().map(write_peer).collect()));
        attributes
    };
    let mut messages = vec![match peers.next() {
        Some(some) => with(first, some),
        None => first,
    }];
    messages.extend(peers.map(|some| with(question(device), some)));
    messages
}

fn write_peer((key, change): &(PublicKey, PeerChange)) -> WireguardPeer {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(key.0)];
    match change {
        PeerChange::Remove => attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe)),
        PeerChange::Set { endpoint, keepalive, addresses } => {
            if addresses.is_some() {
                attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps));
            }
            attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
            attributes.extend(keepalive.map(WireguardPeerAttribute::PersistentKeepalive));
            let allowed = addresses.as_ref().map(|addresses| addresses.iter().map(write_address).collect());
            attributes.extend(allowed.map(WireguardPeerAttribute::AllowedIps));
        }
    }
    WireguardPeer(attributes)
}

fn write_address(address: &Ipv6Addr) -> WireguardAllowedIp {
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv6),
        WireguardAllowedIpAttr::IpAddr(IpAddr::V6(*address)),
        WireguardAllowedIpAttr::Cidr(128),
    ])
}

/// What the messages of an answer say together: a peer with many addresses may be spread over several.
fn read<'a>(messages: impl Iterator<Item = &'a [WireguardAttribute]>, now: Timestamp) -> Actual {
    let mut actual = Actual::default();
    for attribute in messages.flatten() {
        match attribute {
            WireguardAttribute::PublicKey(key) if *key != [0; 32] => actual.key = Some(PublicKey(*key)),
            WireguardAttribute::ListenPort(port) => actual.port = *port,
            WireguardAttribute::Peers(peers) => {
                peers.iter().for_each(|peer| read_peer(peer, now, &mut actual));
            }
            _ => {}
        }
    }
    actual
}

fn read_peer(attributes: &[WireguardPeerAttribute], now: Timestamp, actual: &mut Actual) {
    let key = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer: &mut ActualPeer = actual.peers.entry(key).or_default();
    for attribute in attributes {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.keepalive = *seconds,
            // Never is written as the beginning of time.
            WireguardPeerAttribute::LastHandshake(at) if at.seconds > 0 => {
                let at = u64::try_from(at.seconds).unwrap_or_default();
                peer.handshake = Some(Duration::from_millis(now.0).saturating_sub(Duration::from_secs(at)));
            }
            WireguardPeerAttribute::RxBytes(bytes) => peer.received = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.sent = *bytes,
            WireguardPeerAttribute::AllowedIps(addresses) => {
                let addresses = addresses.iter().flat_map(|address| address.0.iter());
                peer.addresses.extend(addresses.filter_map(|attribute| match attribute {
                    WireguardAllowedIpAttr::IpAddr(IpAddr::V6(address)) => Some(*address),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netlink_packet_wireguard::WireguardTimeSpec;
    use rtnetlink::packet_core::{Emitable as _, ParseableParametrized as _};

    use super::{super::keys::PrivateKey, *};

    fn address(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0x6861, 0x7266, 0, 0, 0, 0, n)
    }

    /// As the kernel would read it.
    fn through_bytes(cmd: WireguardCmd, attributes: Vec<WireguardAttribute>) -> Vec<WireguardAttribute> {
        let written = WireguardMessage { cmd, attributes };
        let mut bytes = vec![0; written.buffer_len()];
        written.emit(&mut bytes);
        let header = netlink_packet_generic::GenlHeader { cmd: cmd.into(), version: 1 };
        WireguardMessage::parse_with_param(&bytes, header).unwrap().attributes
    }

    #[test]
    fn a_change_becomes_messages_that_say_the_same() {
        let set = PeerChange::Set {
            endpoint: Some("192.0.2.1:7421".parse().unwrap()),
            keepalive: Some(25),
            addresses: Some(BTreeSet::from([address(1), address(2)])),
        };
        let kept = PeerChange::Set { endpoint: None, keepalive: Some(0), addresses: None };
        let change = Change {
            key: Some(PrivateKey([1; 32])),
            port: Some(7421),
            peers: vec![
                (PublicKey([2; 32]), PeerChange::Remove),
                (PublicKey([3; 32]), set),
                (PublicKey([4; 32]), kept),
            ],
        };
        let messages = write("wharf-wg", &change);
        assert_eq!(messages.len(), 1);
        let read = through_bytes(WireguardCmd::SetDevice, messages[0].clone());
        let allowed = [1, 2].map(|n| write_address(&address(n))).into();
        let peers = vec![
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey([2; 32]),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
            ]),
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey([3; 32]),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
                WireguardPeerAttribute::Endpoint("192.0.2.1:7421".parse().unwrap()),
                WireguardPeerAttribute::PersistentKeepalive(25),
                WireguardPeerAttribute::AllowedIps(allowed),
            ]),
            WireguardPeer(vec![
                WireguardPeerAttribute::PublicKey([4; 32]),
                WireguardPeerAttribute::PersistentKeepalive(0),
            ]),
        ];
        let expected = [
            WireguardAttribute::IfName("wharf-wg".to_owned()),
            WireguardAttribute::PrivateKey([1; 32]),
            WireguardAttribute::ListenPort(7421),
            WireguardAttribute::Peers(peers),
        ];
        assert_eq!(read, expected);
        let many = (0..130).map(|n| (PublicKey([n; 32]), PeerChange::Remove)).collect();
        let many = write("wharf-wg", &Change { peers: many, ..Change::default() });
        assert_eq!(many.len(), 3, "no message is larger than the kernel takes");
        assert!(many.iter().all(|message| message[0] == WireguardAttribute::IfName("wharf-wg".to_owned())));
    }

    #[test]
    fn an_answer_in_several_messages_is_read_whole() {
        let peer = |attributes: Vec<_>| WireguardAttribute::Peers(vec![WireguardPeer(attributes)]);
        let key = || WireguardPeerAttribute::PublicKey([2; 32]);
        let allowed = |n| WireguardPeerAttribute::AllowedIps(vec![write_address(&address(n))]);
        let at = WireguardTimeSpec { seconds: 1_000, nano_seconds: 0 };
        let first = vec![
            WireguardAttribute::PublicKey([9; 32]),
            WireguardAttribute::ListenPort(7421),
            peer(vec![
                key(),
                WireguardPeerAttribute::Endpoint("[2001:db8::1]:7421".parse().unwrap()),
                WireguardPeerAttribute::LastHandshake(at),
                WireguardPeerAttribute::RxBytes(5),
                WireguardPeerAttribute::TxBytes(6),
                allowed(1),
            ]),
        ];
        let messages = [first, vec![peer(vec![key(), allowed(2)])]];
        let messages = messages.map(|message| through_bytes(WireguardCmd::GetDevice, message));
        let actual = read(messages.iter().map(Vec::as_slice), Timestamp(1_007_000));
        assert_eq!((actual.key, actual.port), (Some(PublicKey([9; 32])), 7421));
        let peer = &actual.peers[&PublicKey([2; 32])];
        assert_eq!(peer.handshake, Some(Duration::from_secs(7)));
        assert_eq!((peer.received, peer.sent), (5, 6));
        assert!(peer.addresses.iter().eq(&[address(1), address(2)]));
        let never = vec![super::WireguardAttribute::Peers(vec![WireguardPeer(vec![
            key(),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec::default()),
        ])])];
        let actual = read(std::iter::once(never.as_slice()), Timestamp(1));
        assert_eq!(actual.peers[&PublicKey([2; 32])].handshake, None);
    }
}
