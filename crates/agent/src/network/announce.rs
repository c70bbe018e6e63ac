//! Tells the containers on a bridge that addresses have other hardware addresses from now on.
//!
//! A container goes on sending to the hardware address that it heard until it doubts it, which takes it up to a minute. An ARP request for an
//! address, in the name of the address itself, changes what those have that know it, and nothing is remembered where it is not known.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
};

use super::plan::Mac;

/// When everything is said again, for a container that was asking meanwhile, or whose kernel believes no change that comes too soon after
/// another one.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(1100)];

/// Says on this bridge of the calling thread's namespace which hardware addresses these have: now, and again within two seconds, for
/// which nobody waits.
pub(super) fn announce(bridge: &str, addresses: &BTreeMap<Ipv4Addr, Mac>) -> io::Result<()> {
    let (socket, from) = open(|name, _| name == bridge)?;
    let claim = |(address, mac): (&Ipv4Addr, &Mac)| frame(from, (*address, *mac), *address);
    let frames: Vec<_> = addresses.iter().map(claim).collect();
    say(&socket, &frames)?;
    // What is said again is said into the same namespace: the socket stays in it.
    let again = move || {
        for wait in AGAIN {
            thread::sleep(wait);
            if let Err(error) = say(&socket, &frames) {
                // The bridge went.
                tracing::debug!(%error, "hardware addresses not announced again");
                return;
            }
        }
    };
    thread::Builder::new().name("announce".to_owned()).spawn(again).map(drop)
}

/// A socket that sends on the device with this name and index, and the device's hardware address.
pub(super) fn open(is: impl Fn(&str, u32) -> bool) -> io::Result<(OwnedFd, Mac)> {
    let mut links = getifaddrs()?.filter_map(|interface| {
        let link = *interface.address?.as_link_addr()?;
        is(&interface.interface_name, u32::try_from(link.ifindex()).ok()?).then_some(link)
    });
    let link = links.next().ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENODEV))?;
    // Without a protocol it hears nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &link)?;
    Ok((socket, link.addr().unwrap_or_default()))
}

pub(super) fn say(socket: &OwnedFd, frames: &[[u8; FRAME]]) -> io::Result<()> {
    for frame in frames {
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            // A full queue somewhere: it is said again.
            Ok(_) | Err(nix::Error::ENOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

const FRAME: usize = 42;

/// A request to everybody for `wanted`, in the name of who has this address and this hardware address; sent by the device with the hardware
/// address `from`.
pub(super) fn frame(from: Mac, (address, mac): (Ipv4Addr, Mac), wanted: Ipv4Addr) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&from);
    // ARP; Ethernet and IPv4 with the lengths of their addresses; a request.
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[38..].copy_from_slice(&wanted.octets());
    frame
}
