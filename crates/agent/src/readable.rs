//! Waits for the kernel to have something to read, and for nothing else.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// What can be waited on until it can be read; nobody is woken because it can be written to.
///
/// # Errors
/// If the kernel cannot tell of it, or no more of them.
#[expect(unsafe_code, reason = "the safe call is deprecated, for what others may hand to it")]
pub(crate) fn readable(owned: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` answers the same open descriptor as long as it lives, and nobody takes it out again.
    unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) }.map_err(io::Error::from)
}
