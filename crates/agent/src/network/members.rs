//! Tells the containers that are plugged into a bridge how large a packet may be.
//!
//! The kernel has no message that changes a link of another namespace. So the namespaces that have a name, and those of processes, are
//! entered one by one until the other end is found. That is slow, and happens only after the underlay's largest packet changed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::PathBuf,
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    LinkUnspec,
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::netlink::{Change, Netlink};

/// Sets the largest packet of the other end of a veth device. It is no error if there is none: it ended, or is no veth.
pub(super) fn set_inside(outside: u32, mtu: u32) -> io::Result<()> {
    let Some((inside, namespace)) = other_end(outside)? else { return Ok(()) };
    if namespace.is_none() {
        return set_if_it_is(inside, outside, mtu).map(drop);
    }
    let mut netlink = Netlink::open()?;
    for file in namespaces() {
        // Which link is whose other end is told by numbers that are only good here.
        if number(&mut netlink, &file) != namespace {
            continue;
        }
        let entered = thread::scope(|scope| {
            let work = move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                set_if_it_is(inside, outside, mtu)
            };
            scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // A namespace that went, or that has no such link, is not the one.
        if matches!(entered, Ok(true)) {
            return Ok(());
        }
    }
    Ok(())
}

/// The index of a veth device's other end, and the number of the namespace it is in, if that is another.
fn other_end(index: u32) -> io::Result<Option<(u32, Option<i32>)>> {
    let Some(link) = link(&mut Netlink::open()?, index)? else { return Ok(None) };
    let (mut peer, mut namespace) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
            _ => {}
        }
    }
    Ok(peer.map(|peer| (peer, namespace)))
}

/// In the calling thread's namespace: sets it on the link `inside` if its other end is `outside`.
fn set_if_it_is(inside: u32, outside: u32, mtu: u32) -> io::Result<bool> {
    let mut netlink = Netlink::open()?;
    let Some(link) = link(&mut netlink, inside)? else { return Ok(false) };
    if !link.attributes.contains(&LinkAttribute::Link(outside)) {
        return Ok(false);
    }
    let message = RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(inside).mtu(mtu).build());
    let failed = netlink.apply([Change { message, flags: 0 }])?;
    failed.into_iter().next().map_or(Ok(true), |(_, error)| Err(error))
}

/// The number that the calling thread's namespace has for another one.
fn number(netlink: &mut Netlink, file: &File) -> Option<i32> {
    let mut question = NsidMessage::default();
    question.attributes = vec![NsidAttribute::Fd(u32::try_from(file.as_raw_fd()).ok()?)];
    match netlink.ask(&RouteNetlinkMessage::GetNsId(question)) {
        Ok(Some(RouteNetlinkMessage::NewNsId(answer))) => {
            answer.attributes.into_iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(number) => Some(number),
                _ => None,
            })
        }
        _ => None,
    }
}

fn link(netlink: &mut Netlink, index: u32) -> io::Result<Option<LinkMessage>> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    match netlink.ask(&RouteNetlinkMessage::GetLink(question)) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link)),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every network namespace of this machine that can be entered, once.
fn namespaces() -> impl Iterator<Item = File> {
    let named = ["/run/docker/netns", "/var/run/docker/netns", "/run/netns"];
    let named = named.into_iter().flat_map(entries);
    let of_processes = entries("/proc").filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    });
    let mut seen = BTreeSet::new();
    named.chain(of_processes.map(|path| path.join("ns/net"))).filter_map(move |path| {
        let file = File::open(path).ok()?;
        seen.insert(file.metadata().ok()?.ino()).then_some(file)
    })
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}
