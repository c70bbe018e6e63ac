//! The sockets a gateway listens on, on their way from one process to the next.
//!
//! - A socket that was handed over listens from before the old process stops accepting until after the new one has begun: no client is refused,
//!   and what waits to be accepted is accepted by whoever comes first.
//! - What was taken over and the first table does not want is closed.
//! - Others may have duplicates of a socket: it is shut down before it is closed, so that nobody is kept waiting at a port that is not served.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Shutdown,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::Mutex;
use socket2::Socket;

use crate::RouteKey;

/// What a gateway has and had of sockets.
#[derive(Default)]
pub(crate) struct Handover {
    /// Taken over, and not listened on yet.
    adopted: Mutex<BTreeMap<RouteKey, OwnedFd>>,
    /// A duplicate of each that is listened on.
    held: Mutex<BTreeMap<RouteKey, Socket>>,
    /// Grows whenever `held` changes.
    changes: AtomicU64,
    /// Nothing is listened on any more.
    retired: AtomicBool,
}

impl Handover {
    pub(crate) fn adopt(&self, sockets: impl IntoIterator<Item = (RouteKey, OwnedFd)>) {
        self.adopted.lock().extend(sockets);
    }

    /// Closes what was taken over but for these.
    pub(crate) fn forget_all_but(&self, wanted: &BTreeSet<RouteKey>) {
        self.adopted.lock().retain(|key, _| wanted.contains(key));
    }

    /// The one that was taken over for this place.
    pub(crate) fn take(&self, key: RouteKey) -> Option<Socket> {
        self.adopted.lock().remove(&key).map(Socket::from)
    }

    /// It is listened on from now on.
    pub(crate) fn hold(&self, key: RouteKey, socket: &Socket) {
        match socket.try_clone() {
            Ok(duplicate) => drop(self.held.lock().insert(key, duplicate)),
            // Then the next process opens it anew.
            Err(error) => tracing::warn!(route = %key, %error, "socket cannot be kept for the next process"),
        }
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// It is not listened on any more, by whoever has a duplicate. The port is free.
    pub(crate) fn close(&self, key: RouteKey) {
        if let Some(socket) = self.held.lock().remove(&key) {
            // Datagram sockets that are connected to nobody refuse it, and have nobody waiting.
            let _ = socket.shutdown(Shutdown::Both);
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Keeps nothing open: this process ends. Who has duplicates may go on.
    pub(crate) fn release(&self) {
        self.held.lock().clear();
    }

    /// Grows whenever a socket is opened or closed.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Duplicates of all that are listened on.
    pub(crate) fn sockets(&self) -> io::Result<Vec<(RouteKey, OwnedFd)>> {
        let held = self.held.lock();
        held.iter().map(|(key, socket)| Ok((*key, socket.try_clone()?.into()))).collect()
    }

    /// Keeps nothing open, and nothing is to be opened from now on.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.release();
        self.adopted.lock().clear();
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}
